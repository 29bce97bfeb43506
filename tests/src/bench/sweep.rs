//! The run: every index at every setting, in interleaved rounds, so that what else the machine does
//! falls on all of them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::dataset::Dataset;
use super::host::Host;
use super::load::{answers, round, Load, Round, Session};
use super::options::Options;
use super::peer::{hash, Built, Engine, Peer};
use super::report::{self, Measured, NoSearch, Results, Setting};
use super::wire::Request;
use super::{curve, pgvector, plot};
use crate::progress::Progress;
use crate::state;

/// Rows of the smaller index of `--scale`.
const SMALL: usize = 100_000;

/// The recall beyond which a peer is not swept on.
const ENOUGH: f64 = 0.999;

/// New backends whose first two queries are timed.
const NEW_BACKENDS: usize = 21;

/// How long a session is asked before it is measured at a new setting.
const WARM_UP: Duration = Duration::from_millis(50);

/// A peer under measurement.
struct Run<'a> {
    peer: Peer<'a>,
    built: Built,
    sessions: Vec<Session>,
    requests: Vec<Request>,
    points: Vec<Point>,
}

/// What is measured of a peer at one value of its knob.
struct Point {
    value: String,
    recall: f64,
    /// For each number of clients, the rounds.
    rounds: Vec<Vec<Round>>,
}

/// Reads the set that the command line names.
///
/// # Errors
/// As [`Dataset::read`].
pub fn dataset(options: &Options) -> Result<Dataset> {
    let progress = Progress::spinner(&format!("Reading {}", options.name));
    let Options { name, files, metric, queries, limit, .. } = options;
    let data = Dataset::read(name, files, *metric, *queries, *limit)?;
    let data = match options.rows {
        Some(rows) if rows < data.base.len() => data.head(rows),
        _ => data,
    };
    progress.done(&format!(
        "{} rows, {} dimensions, {} queries, {}",
        data.base.len(),
        data.base.dimensions(),
        data.queries.len(),
        data.metric.name()
    ));
    Ok(data)
}

/// Measures, prints and writes.
///
/// # Errors
/// Anything that keeps a figure from being measured.
pub fn run(options: &Options) -> Result<()> {
    let data = dataset(options)?;
    let with = report::read(&options.with)?;
    let small = (options.scale && data.base.len() > SMALL).then(|| data.head(SMALL));
    let host = Host::start(options)?;
    report::host(&host.facts);
    let mut runs = prepare(&host, options, &data, small.as_ref())?;
    let (no_search, news) = measure(&host, options, &mut runs)?;
    let mut engines = Vec::new();
    for (run, (first_us, second_us)) in runs.into_iter().zip(news) {
        engines.push(measured(run, options, first_us, second_us));
    }
    engines.extend(with);
    let mut results = Results {
        name: data.name.clone(),
        metric: data.metric.name().to_owned(),
        rows: data.base.len(),
        dimensions: data.base.dimensions(),
        queries: data.queries.len(),
        limit: data.nearest,
        host: Some(host.facts.clone()),
        no_search: Some(no_search),
        engines,
        ratios: Vec::new(),
    };
    results.ratios = report::ratios(&results.engines, &options.clients);
    report::print(&results, &options.clients);
    let dir = options.out.clone().unwrap_or_else(|| state::target().join("bench-sql"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let name: String = options.name.chars().map(|c| if c == '/' { '_' } else { c }).collect();
    let (json, svg) = (dir.join(format!("{name}.json")), dir.join(format!("{name}.svg")));
    let write = |path: &std::path::Path, text: String| {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write(&json, serde_json::to_string_pretty(&results)?)?;
    write(&svg, plot::svg(&results))?;
    println!("\nWritten: {}, {}", json.display(), svg.display());
    host.stop()
}

/// Loads and builds everything.
fn prepare<'a>(
    host: &Host,
    options: &Options,
    data: &'a Dataset,
    small: Option<&'a Dataset>,
) -> Result<Vec<Run<'a>>> {
    let mut peers = vec![(Engine::Drift, "rows", data)];
    peers.extend(small.map(|small| (Engine::Drift, "rows_small", small)));
    let mut version = String::new();
    if options.pgvector {
        version = pgvector::install(&host.state, &host.tree)?;
        for (engine, table) in [(Engine::Hnsw, "rows_hnsw"), (Engine::IvfFlat, "rows_ivfflat")] {
            if engine.supports(data.metric) {
                peers.push((engine, table, data));
            }
        }
    }
    let drift = host.tree.fingerprint()?;
    let clients = options.clients.iter().copied().max().unwrap_or(1);
    let mut runs = Vec::new();
    for (engine, table, data) in peers {
        let version = if engine == Engine::Drift { &drift } else { &version };
        let label = match table {
            "rows_small" => format!("{}, {} rows", engine.label(), data.base.len()),
            _ => engine.label().to_owned(),
        };
        let peer = Peer { engine, label, table: table.to_owned(), data };
        let built = peer.build(host, version, hash(&data.base))?;
        let sessions = peer.sessions(host, options, clients)?;
        let requests = peer.requests()?;
        runs.push(Run { peer, built, sessions, requests, points: Vec::new() });
    }
    Ok(runs)
}

/// The first query of a new backend and its second, in microseconds.
type New = (f64, f64);

fn measure(host: &Host, options: &Options, runs: &mut [Run]) -> Result<(NoSearch, Vec<New>)> {
    for run in runs.iter_mut() {
        recall(run, options)?;
    }
    let mut news = Vec::new();
    for run in runs.iter() {
        let open = || {
            let mut sessions = run.peer.sessions(host, options, 1)?;
            for session in &mut sessions {
                session.connection().prepare(&run.peer.select())?;
            }
            Ok(sessions)
        };
        news.push(new_backends(open, &run.requests)?);
    }
    let first = runs.first().context("nothing to measure")?;
    let requests = first.requests.clone();
    let (first_us, second_us) = new_backends(|| no_search(host, options, first, 1), &requests)?;
    let mut sessions = no_search(host, options, first, first.sessions.len())?;
    let mut loads = vec![Vec::new(); options.clients.len()];
    let settings: usize = runs.iter().map(|run| run.points.len()).sum();
    let parts = options.rounds * (settings + 1);
    let progress = Progress::bar("Measuring", parts as u64);
    for _ in 0..options.rounds {
        for (rounds, &clients) in loads.iter_mut().zip(&options.clients) {
            rounds.push(timed(&mut sessions, clients, &requests, options.time)?);
        }
        progress.advance(1);
        for run in runs.iter_mut() {
            for point in &mut run.points {
                run.peer.turn(&mut run.sessions, &point.value)?;
                for (rounds, &clients) in point.rounds.iter_mut().zip(&options.clients) {
                    rounds.push(timed(&mut run.sessions, clients, &run.requests, options.time)?);
                }
                progress.advance(1);
            }
        }
    }
    progress.done(&format!("{} rounds of {} settings", options.rounds, settings));
    let loads = options.clients.iter().zip(loads).map(|(&it, rounds)| Load::new(it, rounds));
    Ok((NoSearch { loads: loads.collect(), first_us, second_us }, news))
}

fn timed(
    sessions: &mut [Session],
    clients: usize,
    requests: &[Request],
    time: Duration,
) -> Result<Round> {
    let sessions = sessions.get_mut(..clients).context("fewer sessions than clients")?;
    round(sessions, requests, WARM_UP.min(time))?;
    round(sessions, requests, time)
}

/// Asks every query once at every value of the knob. This also reads everything into memory.
fn recall(run: &mut Run, options: &Options) -> Result<()> {
    let data = run.peer.data;
    let values = run.peer.engine.values(options, data.base.len());
    let progress = Progress::bar(&format!("Recall of {}", run.peer.label), values.len() as u64);
    for value in values {
        run.peer.turn(&mut run.sessions, &value)?;
        let answers = answers(&mut run.sessions, &run.requests)?;
        let hits: usize =
            answers.iter().enumerate().map(|(query, answer)| data.hits(query, answer)).sum();
        let recall = hits as f64 / (data.nearest * answers.len()) as f64;
        run.points.push(Point { value, recall, rounds: vec![Vec::new(); options.clients.len()] });
        progress.advance(1);
        if run.peer.engine != Engine::Drift && recall >= ENOUGH {
            break;
        }
    }
    let (least, most) = run.points.iter().fold((1.0_f64, 0.0_f64), |(least, most), point| {
        (least.min(point.recall), most.max(point.recall))
    });
    progress.done(&format!("{least:.3} to {most:.3}"));
    Ok(())
}

/// Times the first two queries of new backends that `open` connects to, with the query prepared.
fn new_backends(open: impl Fn() -> Result<Vec<Session>>, requests: &[Request]) -> Result<New> {
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for number in 0..NEW_BACKENDS {
        let mut sessions = open()?;
        // Each query is another one: what the first has read would be at hand for the second.
        for (at, times) in [(2 * number, &mut firsts), (2 * number + 1, &mut seconds)] {
            let at = at % requests.len();
            let request = requests.get(at..=at).context("no requests")?;
            for session in &mut sessions {
                session.begin_at(0);
            }
            times.push(round(&mut sessions, request, Duration::ZERO)?.p50_us);
        }
    }
    Ok((curve::median(firsts), curve::median(seconds)))
}

/// Sessions that send a query's vector and receive as many rows, without a search.
fn no_search(host: &Host, options: &Options, run: &Run, clients: usize) -> Result<Vec<Session>> {
    let mut sessions = run.peer.sessions(host, options, clients)?;
    let values: Vec<String> = (1..=run.peer.data.nearest).map(|it| format!("({it})")).collect();
    for session in &mut sessions {
        session.connection().prepare(&format!(
            "SELECT id FROM (VALUES {}) AS rows (id) WHERE $1::vector IS NOT NULL",
            values.join(", ")
        ))?;
    }
    Ok(sessions)
}

fn measured(run: Run, options: &Options, first_us: f64, second_us: f64) -> Measured {
    let Run { peer, built, points, .. } = run;
    let knob = peer.engine.knob();
    let points = points.into_iter().map(|point| {
        let loads = options.clients.iter().zip(point.rounds);
        Setting {
            knob: format!("{knob} = {}", point.value),
            recall: point.recall,
            loads: loads.map(|(&clients, rounds)| Load::new(clients, rounds)).collect(),
        }
    });
    Measured {
        name: peer.label,
        through_sql: true,
        rows: peer.data.base.len(),
        build: built.using,
        load_seconds: Some(built.load_seconds),
        build_seconds: Some(built.seconds),
        page_bytes: Some(built.page_bytes),
        arena_bytes: Some(built.arena_bytes),
        first_us: Some(first_us),
        second_us: Some(second_us),
        points: points.collect(),
    }
}
