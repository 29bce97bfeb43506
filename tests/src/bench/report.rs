//! Results: as they are written, read again, and printed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::curve::{speed_at, Point};
use super::dataset::NEAREST;
use super::host::Facts;
use super::load::Load;

/// The recalls at which speeds are compared.
pub const RECALLS: [f64; 3] = [0.90, 0.95, 0.99];

/// Everything a run has measured. `benches/peers.py` writes the same form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// What the set is called.
    pub name: String,
    /// Its metric.
    pub metric: String,
    /// Its rows.
    pub rows: usize,
    /// Elements a row.
    pub dimensions: usize,
    /// How many queries were used.
    pub queries: usize,
    /// How many rows each asked for.
    #[serde(default = "nearest")]
    pub limit: usize,
    /// The machine and the server.
    #[serde(default)]
    pub host: Option<Facts>,
    /// Queries that send a vector and receive as many rows without a search.
    #[serde(default)]
    pub no_search: Option<NoSearch>,
    /// What was measured; drift comes first.
    pub engines: Vec<Measured>,
    /// How drift compares.
    #[serde(default)]
    pub ratios: Vec<Ratio>,
}

// Of results that do not say.
fn nearest() -> usize {
    NEAREST
}

/// What the protocol, the executor and the client cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoSearch {
    /// For each number of clients.
    pub loads: Vec<Load>,
    /// The first query of a new backend, in microseconds: median.
    pub first_us: f64,
    /// Its second one.
    pub second_us: f64,
}

/// What was measured of an index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What it is called.
    pub name: String,
    /// Whether it was asked through SQL; else it is a library in the client's process.
    pub through_sql: bool,
    /// Its rows.
    pub rows: usize,
    /// How it was built.
    pub build: String,
    /// Seconds of COPY.
    #[serde(default)]
    pub load_seconds: Option<f64>,
    /// Seconds of the build.
    #[serde(default)]
    pub build_seconds: Option<f64>,
    /// Bytes of its pages.
    #[serde(default)]
    pub page_bytes: Option<u64>,
    /// Bytes of its files beside them.
    #[serde(default)]
    pub arena_bytes: Option<u64>,
    /// The first query of a new backend, in microseconds: median.
    #[serde(default)]
    pub first_us: Option<f64>,
    /// Its second one.
    #[serde(default)]
    pub second_us: Option<f64>,
    /// What it does at each setting.
    pub points: Vec<Setting>,
}

/// What an index does at one setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// `name = value`
    pub knob: String,
    /// The share of the nearest rows found.
    pub recall: f64,
    /// For each number of clients.
    pub loads: Vec<Load>,
}

/// drift's speed over another's at the same recall.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The other.
    pub other: String,
    /// How many clients there were.
    pub clients: usize,
    /// Whether speeds are those that the time computed allows, without the time spent waiting.
    #[serde(default)]
    pub computed: bool,
    /// The recall.
    pub recall: f64,
    /// drift's queries a second.
    pub drift: f64,
    /// The other's.
    pub qps: f64,
}

impl Measured {
    /// Recall and speed with so many clients. `computed` takes a client's speed from what it and
    /// its backend computed: what it would be if they never had to wait.
    pub fn curve(&self, clients: usize, computed: bool) -> Vec<Point> {
        let load = |setting: &Setting| {
            let load = setting.loads.iter().find(|load| load.clients == clients)?;
            let qps = match (computed, load.median.cpu_us) {
                (false, _) => load.median.qps,
                (true, Some(cpu_us)) => clients as f64 * 1e6 / cpu_us,
                (true, None) => return None,
            };
            Some(Point { recall: setting.recall, qps })
        };
        self.points.iter().filter_map(load).collect()
    }
}

/// Reads the indexes of other results.
///
/// # Errors
/// A file cannot be read, or has another form.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Measured>> {
    let mut engines = Vec::new();
    for path in paths {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let results: Results = serde_json::from_str(&text)
            .with_context(|| format!("{}: no results of a bench", path.display()))?;
        engines.extend(results.engines);
    }
    Ok(engines)
}

/// Compares the first index with the others that have as many rows, where both reach a recall.
pub fn ratios(engines: &[Measured], clients: &[usize]) -> Vec<Ratio> {
    let Some((drift, others)) = engines.split_first() else { return Vec::new() };
    let mut ratios = Vec::new();
    for other in others.iter().filter(|other| other.rows == drift.rows) {
        for (clients, computed) in cases(clients) {
            for recall in RECALLS {
                let ours = speed_at(&drift.curve(clients, computed), recall);
                let theirs = speed_at(&other.curve(clients, computed), recall);
                if let (Some(drift), Some(qps)) = (ours, theirs) {
                    let other = other.name.clone();
                    ratios.push(Ratio { other, clients, computed, recall, drift, qps });
                }
            }
        }
    }
    ratios
}

/// Numbers of clients, as measured; then the first of them by what was computed.
fn cases(clients: &[usize]) -> impl Iterator<Item = (usize, bool)> + '_ {
    let measured = clients.iter().map(|&clients| (clients, false));
    measured.chain(clients.first().map(|&clients| (clients, true)))
}

/// Prints the machine and the settings.
pub fn host(facts: &Facts) {
    let gigabytes = facts.memory as f64 / f64::from(1 << 30);
    println!(
        "\n{}, {} cores, {gigabytes:.0} GB; PostgreSQL {}; load average before {:.2}",
        facts.processor, facts.cores, facts.version, facts.load_average
    );
    let settings: Vec<String> =
        facts.settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    for line in settings.chunks(3) {
        println!("  {}", line.join(", "));
    }
    println!();
}

/// Prints everything else.
pub fn print(results: &Results, clients: &[usize]) {
    println!(
        "\n{}: {} rows, {} dimensions, {}, {} queries; recall@{}, a second, microseconds",
        results.name,
        results.rows,
        results.dimensions,
        results.metric,
        results.queries,
        results.limit
    );
    header(clients);
    if let Some(no_search) = &results.no_search {
        line("no search", "", &no_search.loads, clients);
    }
    for engine in &results.engines {
        println!("{}", engine.name);
        for setting in &engine.points {
            let recall = format!("{:.4}", setting.recall);
            line(&format!("  {}", setting.knob), &recall, &setting.loads, clients);
        }
    }
    println!(
        "\n{:<28}{:>8}{:>10}{:>10}{:>11}{:>11}{:>10}",
        "", "COPY s", "build s", "pages MB", "arenas MB", "first us", "second us"
    );
    let number = |value: Option<f64>, digits: usize| {
        value.map_or(String::from("-"), |value| format!("{value:.digits$}"))
    };
    let megabytes = |value: Option<u64>| number(value.map(|it| it as f64 / 1e6), 1);
    for engine in &results.engines {
        println!(
            "{:<28}{:>8}{:>10}{:>10}{:>11}{:>11}{:>10}",
            engine.name,
            number(engine.load_seconds, 1),
            number(engine.build_seconds, 1),
            megabytes(engine.page_bytes),
            megabytes(engine.arena_bytes),
            number(engine.first_us, 0),
            number(engine.second_us, 0),
        );
    }
    if let Some(NoSearch { first_us, second_us, .. }) = results.no_search {
        println!("{:<67}{first_us:>11.0}{second_us:>10.0}", "no search");
    }
    compare(results, clients);
}

fn header(clients: &[usize]) {
    print!("{:<28}{:>8}", "", "recall");
    for clients in clients {
        let label = if *clients == 1 { "1 client".into() } else { format!("{clients} clients") };
        print!("{label:>12}{:>8}{:>8}{:>8}", "p50", "p99", "cpu");
    }
    println!();
}

fn line(name: &str, recall: &str, loads: &[Load], clients: &[usize]) {
    print!("{name:<28}{recall:>8}");
    for clients in clients {
        match loads.iter().find(|load| load.clients == *clients) {
            Some(Load { median, .. }) => {
                let known = |it: &f64| it.is_finite();
                print!("{:>12.0}", median.qps);
                for value in [Some(median.p50_us), Some(median.p99_us), median.cpu_us] {
                    let text = value.filter(known).map(|it| format!("{it:.0}"));
                    print!("{:>8}", text.unwrap_or("-".into()));
                }
            }
            None => print!("{:>12}{:>8}{:>8}{:>8}", "-", "-", "-", "-"),
        }
    }
    println!();
}

fn compare(results: &Results, clients: &[usize]) {
    let Some((drift, others)) = results.engines.split_first() else { return };
    for (clients, computed) in cases(clients) {
        let plural = if clients == 1 { "" } else { "s" };
        let how = if computed { ", by what was computed (cpu)" } else { "" };
        println!("\nQueries a second at a recall, {clients} client{plural}{how}");
        print!("{:<28}", "");
        RECALLS.iter().for_each(|recall| print!("{recall:>16.2}"));
        println!();
        print!("{:<28}", drift.name);
        for recall in RECALLS {
            let qps = speed_at(&drift.curve(clients, computed), recall);
            print!("{:>16}", qps.map_or("-".into(), |it| format!("{it:.0}")));
        }
        println!();
        for other in others {
            let of: Vec<&Ratio> = results
                .ratios
                .iter()
                .filter(|it| {
                    (&it.other, it.clients, it.computed) == (&other.name, clients, computed)
                })
                .collect();
            if of.is_empty() {
                continue;
            }
            print!("{:<28}", other.name);
            for recall in RECALLS {
                let ratio = of.iter().find(|it| it.recall == recall);
                let text = ratio.map(|it| format!("{:.0} ({:.1}x)", it.qps, it.drift / it.qps));
                print!("{:>16}", text.unwrap_or("-".into()));
            }
            println!();
        }
    }
    for other in others.iter().filter(|it| it.rows != drift.rows && it.through_sql) {
        let speeds =
            (speed_at(&drift.curve(1, false), 0.95), speed_at(&other.curve(1, false), 0.95));
        if let (Some(ours), Some(theirs)) = speeds {
            println!(
                "\nAt recall 0.95, 1 client: {} rows take {:.2} times as long as {}",
                drift.rows,
                theirs / ours,
                other.rows
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::Round;
    use super::*;

    fn engine(name: &str, rows: usize, points: &[(f64, f64)]) -> Measured {
        let setting = |&(recall, qps): &(f64, f64)| {
            let round = Round { qps, p50_us: 1e6 / qps, p99_us: 2e6 / qps, cpu_us: None };
            Setting { knob: "k = 1".into(), recall, loads: vec![Load::new(1, vec![round])] }
        };
        Measured {
            name: name.into(),
            through_sql: true,
            rows,
            build: String::new(),
            load_seconds: None,
            build_seconds: Some(1.0),
            page_bytes: Some(8192),
            arena_bytes: None,
            first_us: None,
            second_us: None,
            points: points.iter().map(setting).collect(),
        }
    }

    #[test]
    fn ratios_are_of_those_with_as_many_rows_that_reach_the_recall() {
        let engines = [
            engine("drift", 10, &[(0.9, 1000.0), (1.0, 500.0)]),
            engine("other", 10, &[(0.9, 100.0), (0.96, 50.0)]),
            engine("small", 5, &[(1.0, 1.0)]),
        ];
        let ratios = ratios(&engines, &[1, 2]);
        let seen: Vec<(&str, usize, f64)> =
            ratios.iter().map(|it| (it.other.as_str(), it.clients, it.recall)).collect();
        assert_eq!(seen, [("other", 1, 0.9), ("other", 1, 0.95)]);
        assert_eq!(ratios[0].drift / ratios[0].qps, 10.0);
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let results = Results {
            name: "set".into(),
            metric: "l2".into(),
            rows: 10,
            dimensions: 2,
            queries: 3,
            limit: 10,
            host: None,
            no_search: None,
            engines: vec![engine("drift", 10, &[(0.9, 1000.0)])],
            ratios: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        fs::write(&path, serde_json::to_string(&results).unwrap()).unwrap();
        assert_eq!(read(std::slice::from_ref(&path)).unwrap(), results.engines);
        fs::write(&path, "{\"name\": 1}").unwrap();
        let error = read(&[path]).unwrap_err().to_string();
        assert!(error.contains("results.json"), "{error}");
    }
}
