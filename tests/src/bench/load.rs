//! Pinned pairs of a client and its backend, and what they measure.
//!
//! A client and its backend take turns: one sleeps while the other works. On cores of their own
//! each turn wakes an idle core, which on a virtual machine costs more than many a query. So a
//! pair shares a core, and pairs have different ones.

use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::curve::{median, percentile};
use super::host::pin;
use super::wire::{Connection, Request};

/// A client and its backend, on one core.
pub struct Session {
    connection: Connection,
    core: usize,
    /// The request to go on with.
    next: usize,
}

/// What one round has measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Requests a second, of all clients together.
    pub qps: f64,
    /// Median latency, in microseconds; NaN where requests were not timed one by one.
    #[serde(default = "unknown", skip_serializing_if = "is_unknown")]
    pub p50_us: f64,
    /// Latency that one request in a hundred exceeds, in microseconds; NaN as the other.
    #[serde(default = "unknown", skip_serializing_if = "is_unknown")]
    pub p99_us: f64,
    /// What client and backend together computed for a request, in microseconds: without the
    /// waiting, for the disk or for a core that others use. Less than the latency by much means
    /// that the machine was not quiet.
    #[serde(default)]
    pub cpu_us: Option<f64>,
}

// JSON has no NaN.
fn unknown() -> f64 {
    f64::NAN
}

fn is_unknown(value: &f64) -> bool {
    value.is_nan()
}

/// What one client measured in a round.
pub struct Ran {
    /// Of each request, in microseconds.
    latencies: Vec<f64>,
    /// Requests a second.
    rate: f64,
    /// What client and backend computed for all of them, in microseconds.
    cpu_us: Option<f64>,
}

/// What a number of clients measured in all rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// How many clients there were.
    pub clients: usize,
    /// Medians over the rounds.
    #[serde(flatten)]
    pub median: Round,
    /// Each round.
    #[serde(default)]
    pub rounds: Vec<Round>,
}

impl Load {
    /// Sums up rounds.
    pub fn new(clients: usize, rounds: Vec<Round>) -> Load {
        let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
        let cpu_us = median(rounds.iter().filter_map(|it| it.cpu_us));
        let median = Round {
            qps: of(|it| it.qps),
            p50_us: of(|it| it.p50_us),
            p99_us: of(|it| it.p99_us),
            cpu_us: cpu_us.is_finite().then_some(cpu_us),
        };
        Load { clients, median, rounds }
    }
}

impl Session {
    /// Connects, and puts the backend on a core.
    ///
    /// # Errors
    /// The server refuses, or the backend cannot be put there.
    pub fn open(socket_dir: &Path, database: &str, core: usize) -> Result<Session> {
        let connection = Connection::open(socket_dir, database)?;
        pin(connection.backend(), core)?;
        Ok(Session { connection, core, next: 0 })
    }

    /// The connection, for what is not measured.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The core of the pair.
    pub fn core(&self) -> usize {
        self.core
    }

    /// The number of the request to go on with.
    pub fn begin_at(&mut self, number: usize) {
        self.next = number;
    }

    /// Executes one request after the other, from where the last round has stopped, for a time and
    /// at least once.
    ///
    /// # Errors
    /// A request fails.
    pub fn go_on(&mut self, requests: &[Request], time: Duration) -> Result<Ran> {
        let computed_before = self.computed();
        let mut latencies = Vec::with_capacity(1 << 16);
        let mut ids = Vec::with_capacity(16);
        let started = Instant::now();
        let mut before = started;
        loop {
            let request = requests.get(self.next).context("no requests")?;
            self.next = (self.next + 1) % requests.len();
            self.connection.execute(request, &mut ids)?;
            let now = Instant::now();
            latencies.push((now - before).as_secs_f64() * 1e6);
            before = now;
            if now - started >= time {
                let rate = latencies.len() as f64 / (now - started).as_secs_f64();
                let computed = self.computed().zip(computed_before);
                let cpu_us = computed.map(|(after, before)| (after - before) * 1e6);
                return Ok(Ran { latencies, rate, cpu_us });
            }
        }
    }

    /// Seconds that this thread and the backend have computed; none if the system does not tell.
    fn computed(&self) -> Option<f64> {
        let backend = format!("/proc/{}/schedstat", self.connection.backend());
        let nanoseconds = |path: &str| -> Option<f64> {
            fs::read_to_string(path).ok()?.split(' ').next()?.parse().ok()
        };
        Some((nanoseconds("/proc/thread-self/schedstat")? + nanoseconds(&backend)?) * 1e-9)
    }
}

/// Lets all sessions execute requests for a time, each in a thread on its pair's core.
///
/// # Errors
/// A request fails.
pub fn round(sessions: &mut [Session], requests: &[Request], time: Duration) -> Result<Round> {
    let results = together(sessions, |session| session.go_on(requests, time))?;
    Ok(sum_up(results))
}

/// One round of what several clients did.
pub fn sum_up(results: Vec<Ran>) -> Round {
    let qps = results.iter().map(|ran| ran.rate).sum();
    let cpu_us: Option<f64> = results.iter().map(|ran| ran.cpu_us).sum();
    let mut latencies: Vec<f64> = results.into_iter().flat_map(|ran| ran.latencies).collect();
    latencies.sort_by(f64::total_cmp);
    Round {
        qps,
        p50_us: percentile(&latencies, 0.5),
        p99_us: percentile(&latencies, 0.99),
        cpu_us: cpu_us.map(|it| it / latencies.len() as f64),
    }
}

/// Executes every request once and returns the ids found, in the order of the requests.
///
/// # Errors
/// A request fails.
pub fn answers(sessions: &mut [Session], requests: &[Request]) -> Result<Vec<Vec<i32>>> {
    let clients = sessions.len();
    let numbers: Vec<usize> = (0..clients).collect();
    let mut pairs: Vec<(&mut Session, usize)> = sessions.iter_mut().zip(numbers).collect();
    let parts = together_by(
        &mut pairs,
        |it| it.0.core,
        |(session, number)| {
            let mine = requests.iter().skip(*number).step_by(clients);
            mine.map(|request| {
                let mut ids = Vec::new();
                session.connection.execute(request, &mut ids)?;
                Ok(ids)
            })
            .collect::<Result<Vec<_>>>()
        },
    )?;
    let mut parts: Vec<_> = parts.into_iter().map(Vec::into_iter).collect();
    let mut answers = Vec::with_capacity(requests.len());
    for number in 0..requests.len() {
        let part = parts.get_mut(number % clients.max(1)).context("no sessions")?;
        answers.push(part.next().context("an answer is missing")?);
    }
    Ok(answers)
}

/// Runs the same work for each session at the same time, each in a thread on the session's core.
///
/// # Errors
/// A thread cannot be put on its core, or the work fails.
pub fn together<T: Send>(
    sessions: &mut [Session],
    work: impl Fn(&mut Session) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    together_by(sessions, Session::core, work)
}

fn together_by<S: Send, T: Send>(
    items: &mut [S],
    core: impl Fn(&S) -> usize,
    work: impl Fn(&mut S) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let barrier = Barrier::new(items.len());
    let (barrier, work) = (&barrier, &work);
    thread::scope(|scope| {
        let threads: Vec<_> = items
            .iter_mut()
            .map(|item| {
                let core = core(item);
                scope.spawn(move || {
                    let pinned = pin(0, core);
                    barrier.wait();
                    pinned?;
                    work(item)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|it| it.join());
        joined.map(|it| it.map_err(|_| anyhow::anyhow!("a client has panicked"))?).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_taken_over_rounds() {
        let round = |qps: f64| Round {
            qps,
            p50_us: 1e6 / qps,
            p99_us: 2e6 / qps,
            cpu_us: Some(0.5e6 / qps),
        };
        let load = Load::new(1, vec![round(10.0), round(30.0), round(20.0)]);
        assert_eq!(load.median, round(20.0));
        let text = serde_json::to_string(&load).unwrap();
        assert_eq!(serde_json::from_str::<Load>(&text).unwrap(), load);
        let untimed = Round { qps: 5.0, p50_us: f64::NAN, p99_us: f64::NAN, cpu_us: None };
        let text = serde_json::to_string(&Load::new(1, vec![untimed])).unwrap();
        let back: Load = serde_json::from_str(&text).unwrap();
        assert!(back.median.qps == 5.0 && back.median.p50_us.is_nan(), "{text}");
    }

    #[test]
    fn clients_add_up() {
        let ran =
            |latencies: &[f64], rate, cpu_us| Ran { latencies: latencies.into(), rate, cpu_us };
        let round = sum_up(vec![ran(&[3.0, 1.0], 10.0, Some(4.0)), ran(&[2.0], 5.0, Some(2.0))]);
        assert_eq!(round, Round { qps: 15.0, p50_us: 2.0, p99_us: 3.0, cpu_us: Some(2.0) });
        assert_eq!(sum_up(vec![ran(&[1.0], 1.0, None)]).cpu_us, None);
    }
}
