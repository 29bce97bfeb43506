//! A private server with 20,000 word vectors and an index on them: run by `cargo demo`.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use harness::cluster::{Cluster, Stop};
use harness::command::display;
use harness::data::Words;
use harness::progress::Progress;
use harness::state::State;
use harness::vector::{BinaryCopy, Field, Vector};
use harness::{install, provision};
use postgres::{Client, Statement};

const USAGE: &str = "\
Shows drift_pg at work, on a private server with 20,000 word vectors.

Usage: cargo demo           install what is missing, start the server, show
       cargo demo psql ...  connect with psql
       cargo demo stop      stop the server
";

const DATABASE: &str = "demo";
const NEAREST: &str = "SELECT word FROM words ORDER BY embedding <=> \
                       (SELECT embedding FROM words WHERE word = $1) LIMIT 8";
const TOP: &str = "SELECT id FROM words ORDER BY embedding <=> $1 LIMIT 10";
const SAMPLES: [&str; 6] = ["coffee", "river", "violin", "winter", "algebra", "planet"];

/// How many words recall and speed are measured with.
const QUERIES: usize = 200;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [] => show(),
        ["psql", rest @ ..] => psql(rest),
        ["stop"] => stop(),
        ["--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cluster(state: &State) -> Result<Cluster> {
    Cluster::builder()
        .conf("fsync", "on")
        .conf("autovacuum", "on")
        .conf("shared_buffers", "256MB")
        .conf("maintenance_work_mem", "256MB")
        .lasting(state.path("demo"), state.socket_dir()?)
        .open()
}

/// The demo's cluster, if its server runs.
fn running() -> Result<Option<Cluster>> {
    let state = State::open()?;
    if !state.path("demo/data").exists() {
        return Ok(None);
    }
    let mut cluster = cluster(&state)?;
    Ok(cluster.is_running().then_some(cluster))
}

fn psql(arguments: &[&str]) -> Result<()> {
    let cluster = running()?.context("the demo's server does not run; `cargo demo` starts it")?;
    let mut command = cluster.client("psql");
    command.args(["--dbname", DATABASE]).args(arguments);
    Err(command.exec()).context("cannot run psql")
}

fn stop() -> Result<()> {
    match running()? {
        Some(mut cluster) => {
            cluster.stop(Stop::Fast)?;
            println!("The demo's server has stopped; `cargo demo` starts it again.");
        }
        None => println!("The demo's server does not run."),
    }
    Ok(())
}

fn show() -> Result<()> {
    println!("\ndrift_pg: nearest neighbours in PostgreSQL\n");
    // Before the state is opened: PostgreSQL's package brings the user that runs servers.
    provision::packages()?;
    let state = State::open()?;
    let installed = install::all(&state)?;
    let mut cluster = cluster(&state)?;
    if installed.changed {
        cluster.stop(Stop::Fast)?;
    }
    cluster.start()?;
    load(&cluster, &installed.tree.fingerprint()?)?;
    let mut client = cluster.connect_to(DATABASE)?;
    // What the planner would do with parameters it has not seen is not what is shown here.
    client.batch_execute("SET plan_cache_mode = force_custom_plan")?;
    plan(&mut client)?;
    nearest(&mut client)?;
    measure(&mut client)?;
    let mut connect = cluster.client("psql");
    connect.args(["--dbname", DATABASE]);
    println!("\nGo on");
    println!("  cargo demo psql     or {}", display(&connect));
    println!(
        "  cargo demo stop     stops the server; its data stay in {}\n",
        state.path("demo").display()
    );
    Ok(())
}

/// Makes the database, unless it is there and of this build of the extension.
fn load(cluster: &Cluster, fingerprint: &str) -> Result<()> {
    let mark = format!("loaded with drift_pg {fingerprint}");
    let found = cluster.psql(&format!(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{DATABASE}'"
    ))?;
    if found.trim_end() == mark {
        return Ok(());
    }
    cluster.psql(&format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"))?;
    cluster.psql(&format!("CREATE DATABASE {DATABASE}"))?;
    let mut client = cluster.connect_to(DATABASE)?;
    let words = Words::bundled()?;
    let dimensions = words.vectors.first().map_or(0, Vec::len);
    client.batch_execute(&format!(
        "CREATE EXTENSION drift_pg;
         CREATE TABLE words (id int PRIMARY KEY, word text, embedding vector({dimensions}))"
    ))?;
    let progress = Progress::bar("Loading word vectors", words.words.len() as u64);
    let mut copy = BinaryCopy::new(client.copy_in("COPY words FROM STDIN BINARY")?)?;
    for (id, (word, vector)) in (1..).zip(words.words.iter().zip(&words.vectors)) {
        copy.row(&[Field::Integer(id), Field::Text(word), Field::Vector(vector)])?;
        progress.advance(1);
    }
    let rows = copy.finish()?.finish()?;
    progress.done(&format!("{rows} rows, {dimensions} dimensions"));
    let progress = Progress::spinner("CREATE INDEX ... USING drift");
    client.batch_execute(
        "CREATE INDEX words_embedding_idx ON words USING drift (embedding vector_cosine_ops)",
    )?;
    let size = "SELECT pg_size_pretty(pg_relation_size('words_embedding_idx'))";
    progress.done(&client.query_one(size, &[])?.get::<_, String>(0));
    client.batch_execute("VACUUM ANALYZE words")?;
    client.batch_execute(&format!("COMMENT ON DATABASE {DATABASE} IS '{mark}'"))?;
    Ok(())
}

fn plan(client: &mut Client) -> Result<()> {
    let query = NEAREST.replace("$1", "'coffee'");
    println!("\nThe query\n  {}", query.replace(" (SELECT", "\n  (SELECT"));
    println!("\nIts plan");
    let mut indexed = false;
    for row in client.query(&format!("EXPLAIN (COSTS OFF) {query}"), &[])? {
        let line: String = row.get(0);
        indexed |= line.contains("Index Scan using words_embedding_idx");
        println!("  {line}");
    }
    if !indexed {
        bail!("the plan does not use the index");
    }
    Ok(())
}

fn nearest(client: &mut Client) -> Result<()> {
    println!("\nNearest words");
    for sample in SAMPLES {
        let rows = client.query(NEAREST, &[&sample])?;
        let words: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let others: Vec<&str> =
            words.iter().map(String::as_str).filter(|word| *word != sample).collect();
        println!("  {sample:<10} {}", others.join(", "));
    }
    Ok(())
}

/// Answers each query once; returns the answers and how long they took.
fn answers(
    client: &mut Client,
    statement: &Statement,
    queries: &[Vector],
    progress: &Progress,
) -> Result<(Vec<Vec<i32>>, Duration)> {
    let mut answers = Vec::with_capacity(queries.len());
    let started = Instant::now();
    for query in queries {
        let rows = client.query(statement, &[query])?;
        answers.push(rows.iter().map(|row| row.get(0)).collect());
        progress.advance(1);
    }
    Ok((answers, started.elapsed()))
}

fn measure(client: &mut Client) -> Result<()> {
    let step =
        format!("SELECT embedding FROM words WHERE id % (20000 / {QUERIES}) = 0 ORDER BY id");
    let queries: Vec<Vector> = client.query(&step, &[])?.iter().map(|row| row.get(0)).collect();
    let parts = 3 * queries.len() as u64;
    let progress = Progress::bar("Measuring", parts);
    let statement = client.prepare(TOP)?;
    // The first round fills the caches of this session.
    answers(client, &statement, &queries, &progress)?;
    let (found, quick) = answers(client, &statement, &queries, &progress)?;
    client.batch_execute("SET enable_indexscan = off")?;
    let (exact, slow) = answers(client, &statement, &queries, &progress)?;
    client.batch_execute("RESET enable_indexscan")?;
    drop(progress);
    let wanted: usize = exact.iter().map(Vec::len).sum();
    let hits: usize = found
        .iter()
        .zip(&exact)
        .map(|(found, exact)| exact.iter().filter(|id| found.contains(id)).count())
        .sum();
    let per_second = |elapsed: Duration| queries.len() as f64 / elapsed.as_secs_f64();
    println!("\nThe 10 nearest of {} words, one session", queries.len());
    println!("  {:<22}{:>9}{:>16}", "", "recall", "queries/second");
    let recall = hits as f64 / wanted as f64;
    println!("  {:<22}{recall:>9.3}{:>16.0}", "through the index", per_second(quick));
    println!("  {:<22}{:>9.3}{:>16.0}", "without it", 1.0, per_second(slow));
    Ok(())
}
