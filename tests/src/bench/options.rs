//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

use super::dataset::{Files, Metric, NEAREST};

/// What `--help` prints.
pub const USAGE: &str = "\
Measures recall, speed, build time and size through SQL, on a private server.

Usage: cargo bench-sql --data DIR NAME [OPTION]...
       cargo bench-sql --base FILE --query FILE [--truth FILE] --metric METRIC [OPTION]...
       cargo bench-sql --hdf5 FILE [OPTION]...
       cargo bench-sql --synthetic ROWS DIMENSIONS [OPTION]...
       cargo bench-sql --writes ... [OPTION]...

The set
  --data DIR NAME      NAME_base, NAME_query (.fvecs or .bvecs) and NAME_truth.ivecs, or
                       NAME.hdf5, in DIR
  --base, --query      .fvecs or .bvecs
  --truth FILE         .ivecs; without it the exact answers are computed
  --hdf5 FILE          a file of ann-benchmarks
  --synthetic ROWS DIMENSIONS
                       clusters of low intrinsic dimension, the same ones each time
  --metric METRIC      l2, ip, cosine or l1; for sets named sift... and glove... it is known
  --queries N          use N queries at most (1000)
  --limit N            the nearest rows a query asks for (10)
  --rows N             use the first N rows only; the exact answers are computed

What is measured
  --targets LIST       values of drift.target_recall (0.8,0.9,0.95,0.97,0.98,0.99,0.995,0.999,1)
  --clients LIST       numbers of clients, each with its backend on a core of its own (1,2)
  --rounds N           interleaved rounds, of which medians are reported (3)
  --seconds S          how long each round measures each setting (1)
  --scale              the first 100,000 rows too, for comparison
  --pgvector           pgvector's HNSW and IVFFlat too; builds pgvector from Debian's source
  --writes             inserts, copies, and queries beside them, instead of the curve
  --indexed N          with --writes: how many rows the index has at first (200000)

The server
  --shared-buffers, --maintenance-work-mem SIZE
                       (8GB and 4GB, less on a machine with less than 22 and 16 GB)
  --workers N          max_parallel_maintenance_workers (2)
  --set NAME=VALUE     a setting of every session that queries drift
  --keep DIR           keep the cluster there, and use again what pgvector has built before

What comes out
  --out DIR            for the JSON file and the plot (target/bench-sql)
  --with FILE          show the results of benches/peers.py, or of another run, too
";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Recall and speed.
    Reads,
    /// Inserts and copies.
    Writes,
}

/// The command line, read.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is measured.
    pub what: What,
    /// What the set is called.
    pub name: String,
    /// Its files.
    pub files: Files,
    /// Its metric, if named.
    pub metric: Option<Metric>,
    /// The most queries used.
    pub queries: usize,
    /// How many rows a query asks for.
    pub limit: usize,
    /// How many rows are used, if not all.
    pub rows: Option<usize>,
    /// Values of `drift.target_recall`.
    pub targets: Vec<f64>,
    /// Numbers of clients.
    pub clients: Vec<usize>,
    /// Interleaved rounds.
    pub rounds: usize,
    /// How long a round measures a setting.
    pub time: Duration,
    /// Whether a smaller index is measured as well.
    pub scale: bool,
    /// Whether pgvector is.
    pub pgvector: bool,
    /// Rows indexed before writing begins.
    pub indexed: usize,
    /// `shared_buffers`
    pub shared_buffers: Option<String>,
    /// `maintenance_work_mem`
    pub maintenance_work_mem: Option<String>,
    /// `max_parallel_maintenance_workers`
    pub workers: usize,
    /// Settings of the sessions that query drift.
    pub session: Vec<(String, String)>,
    /// Where the cluster is kept.
    pub keep: Option<PathBuf>,
    /// Where results go.
    pub out: Option<PathBuf>,
    /// Results to be shown too.
    pub with: Vec<PathBuf>,
}

impl Options {
    /// Reads the command line; none if help is asked for.
    ///
    /// # Errors
    /// It is not one: the error says what is wrong.
    pub fn read(arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
        let mut options = Options {
            what: What::Reads,
            name: String::new(),
            files: Files::Hdf5(PathBuf::new()),
            metric: None,
            queries: 1000,
            limit: NEAREST,
            rows: None,
            targets: vec![0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0],
            clients: vec![1, 2],
            rounds: 3,
            time: Duration::from_secs(1),
            scale: false,
            pgvector: false,
            indexed: 200_000,
            shared_buffers: None,
            maintenance_work_mem: None,
            workers: 2,
            session: Vec::new(),
            keep: None,
            out: None,
            with: Vec::new(),
        };
        let (mut files, mut base, mut query, mut truth) = (None, None, None, None);
        let mut arguments = arguments;
        while let Some(option) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{option} needs a value"));
            match option.as_str() {
                "--data" => {
                    let dir = PathBuf::from(value()?);
                    let name = value().context("after the directory: the name of a set in it")?;
                    files = Some(Files::named(&dir, &name)?);
                    options.name = name;
                }
                "--base" => base = Some(PathBuf::from(value()?)),
                "--query" => query = Some(PathBuf::from(value()?)),
                "--truth" => truth = Some(PathBuf::from(value()?)),
                "--hdf5" => files = Some(Files::Hdf5(PathBuf::from(value()?))),
                "--synthetic" => {
                    let rows = number(&option, &value()?)?;
                    let dimensions = number(&option, &value()?)?;
                    files = Some(Files::Synthetic { rows, dimensions });
                    options.name = format!("synthetic{dimensions}");
                }
                "--metric" => options.metric = Some(Metric::named(&value()?)?),
                "--queries" => options.queries = number(&option, &value()?)?,
                "--limit" => options.limit = number(&option, &value()?)?,
                "--rows" => options.rows = Some(number(&option, &value()?)?),
                "--targets" => {
                    options.targets = list(&option, &value()?)?;
                    let valid = options.targets.iter().all(|it| (0.0..=1.0).contains(it));
                    ensure!(valid, "{option}: a recall is between 0 and 1");
                }
                "--clients" => {
                    options.clients = list(&option, &value()?)?;
                    ensure!(!options.clients.contains(&0), "{option}: 0 clients measure nothing");
                }
                "--rounds" => options.rounds = number(&option, &value()?)?,
                "--seconds" => {
                    let seconds: f64 = value()?.parse().context("--seconds needs a number")?;
                    options.time = Duration::try_from_secs_f64(seconds).context("--seconds")?;
                }
                "--scale" => options.scale = true,
                "--pgvector" => options.pgvector = true,
                "--writes" => options.what = What::Writes,
                "--indexed" => options.indexed = number(&option, &value()?)?,
                "--shared-buffers" => options.shared_buffers = Some(value()?),
                "--maintenance-work-mem" => options.maintenance_work_mem = Some(value()?),
                "--workers" => {
                    options.workers = value()?.parse().context("--workers needs a number")?;
                }
                "--set" => {
                    let pair = value()?;
                    let (name, value) =
                        pair.split_once('=').with_context(|| format!("{pair}: not NAME=VALUE"))?;
                    options.session.push((name.to_owned(), value.to_owned()));
                }
                "--keep" => options.keep = Some(PathBuf::from(value()?)),
                "--out" => options.out = Some(PathBuf::from(value()?)),
                "--with" => options.with.push(PathBuf::from(value()?)),
                "--help" | "-h" => return Ok(None),
                _ => bail!("{option}: no such option; see cargo bench-sql --help"),
            }
        }
        options.files = match (files, base, query) {
            (Some(files), None, None) if truth.is_none() => files,
            (None, Some(base), Some(query)) => Files::Separate { base, query, truth },
            (None, None, None) => bail!("name a set; see cargo bench-sql --help"),
            (None, ..) => bail!("--base and --query go together"),
            (Some(_), ..) => bail!("--base, --query and --truth go with no other set"),
        };
        if options.name.is_empty() {
            let path = match &options.files {
                Files::Hdf5(path) | Files::Separate { base: path, .. } => Some(path),
                Files::Synthetic { .. } => None,
            };
            let stem = path.and_then(|path| path.file_stem());
            let stem = stem.map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
            options.name = stem.strip_suffix("_base").unwrap_or(&stem).to_owned();
        }
        Ok(Some(options))
    }
}

fn number(option: &str, text: &str) -> Result<usize> {
    let number = text.parse().with_context(|| format!("{option} needs a number"))?;
    ensure!(number > 0, "{option}: 0 is too few");
    Ok(number)
}

fn list<T: std::str::FromStr>(option: &str, text: &str) -> Result<Vec<T>> {
    let parse = |item: &str| item.trim().parse().ok();
    let items: Option<Vec<T>> = text.split(',').map(parse).collect();
    items.with_context(|| format!("{option} needs numbers with commas in between"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Option<Options>> {
        Options::read(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn separate_files_are_read() {
        let line = "--base a_base.fvecs --query b.fvecs --metric ip --targets 0.9,1 --clients 1";
        let options = read(line).unwrap().unwrap();
        assert_eq!((options.name.as_str(), options.metric), ("a", Some(Metric::InnerProduct)));
        assert_eq!((options.targets, options.clients), (vec![0.9, 1.0], vec![1]));
        let Files::Separate { base, query, truth: None } = options.files else { panic!() };
        assert_eq!((base, query), (PathBuf::from("a_base.fvecs"), PathBuf::from("b.fvecs")));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "",
            "--base a.fvecs",
            "--truth a.ivecs",
            "--hdf5 a.hdf5 --base b --query c",
            "--hdf5 a --metric hamming",
            "--hdf5 a --targets 0.9,x",
            "--hdf5 a --targets 2",
            "--hdf5 a --clients 0",
            "--hdf5 a --rounds 0",
            "--hdf5 a --limit 0",
            "--hdf5 a --seconds -1",
            "--hdf5 a --set x",
            "--hdf5 a --fast",
            "--hdf5",
            "--data /nowhere set",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
        assert!(read("--help").unwrap().is_none());
    }
}
