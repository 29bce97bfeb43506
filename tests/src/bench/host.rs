//! The private server of a run: its memory, its settings, its cores.

use std::fs;
use std::mem::{size_of, zeroed};
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::options::Options;
use crate::cluster::{Cluster, Stop};
use crate::install::{self, Tree};
use crate::state::State;
use crate::{cluster, provision};

const GIB: u64 = 1 << 30;

/// The machine and the server's settings, as they are reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The processor's name.
    pub processor: String,
    /// How many of its cores may be used.
    pub cores: usize,
    /// Memory, in bytes.
    pub memory: u64,
    /// The server's version.
    pub version: String,
    /// Settings that bear on the figures.
    pub settings: Vec<(String, String)>,
    /// The load average of the last minute when the run began: others were at work if it is high.
    pub load_average: f64,
}

/// A server that goes with the run; its data stay where the command line says so.
pub struct Host {
    /// The cluster.
    pub cluster: Cluster,
    /// The installation it runs from.
    pub tree: Tree,
    /// Where the harness keeps things.
    pub state: State,
    /// The cores that pairs of client and backend are put on.
    pub cores: Vec<usize>,
    /// What is reported of it.
    pub facts: Facts,
    kept: Option<TempDir>,
}

impl Host {
    /// Installs the extension, makes the cluster or takes up the one that was kept, and starts it.
    ///
    /// # Errors
    /// Something is missing and cannot be installed, or the server does not start.
    pub fn start(options: &Options) -> Result<Host> {
        provision::packages()?;
        let state = State::open()?;
        cluster::sweep(&state)?;
        let load_average = load_average()?;
        let tree = install::all(&state)?.tree;
        let memory = memory()?;
        let settings = settings(options, memory);
        let (mut cluster, kept) = match &options.keep {
            None => (Cluster::builder().open()?, None),
            Some(dir) => {
                let prefix = format!("drift.{}-", std::process::id());
                let socket = tempfile::Builder::new().prefix(&prefix).tempdir_in("/tmp")?;
                state.user().own(socket.path())?;
                let dir = std::path::absolute(dir)?;
                let path = socket.path().to_owned();
                ensure!(state.user().reaches(&dir), "servers cannot reach {}", dir.display());
                (Cluster::builder().lasting(dir, path).open()?, Some(socket))
            }
        };
        // A kept cluster may have other settings, or still run for a bench that was killed.
        cluster.stop(Stop::Fast)?;
        for (name, value) in &settings {
            cluster.configure(name, value)?;
        }
        cluster.start()?;
        let mut client = cluster.connect()?;
        let mut facts = Facts {
            processor: processor(),
            cores: cores()?.len(),
            memory,
            version: client.query_one("SHOW server_version", &[])?.get(0),
            settings: Vec::new(),
            load_average,
        };
        for (name, _) in settings {
            let value = client.query_one(&format!("SHOW {name}"), &[])?.get(0);
            facts.settings.push((name, value));
        }
        Ok(Host { cluster, tree, state, cores: cores()?, facts, kept })
    }

    /// Stops a server whose data are kept; others go with the value.
    ///
    /// # Errors
    /// It does not stop.
    pub fn stop(mut self) -> Result<()> {
        if self.kept.is_some() {
            self.cluster.stop(Stop::Fast)?;
        }
        Ok(())
    }
}

fn settings(options: &Options, memory: u64) -> Vec<(String, String)> {
    let megabytes = |bytes: u64| format!("{}MB", bytes >> 20);
    let shared = megabytes((8 * GIB).min(memory / 8 * 3));
    let maintenance = megabytes((4 * GIB).min(memory / 4));
    let workers = options.workers.to_string();
    let pairs = [
        ("shared_preload_libraries", "drift_pg"),
        ("shared_buffers", options.shared_buffers.as_deref().unwrap_or(&shared)),
        ("maintenance_work_mem", options.maintenance_work_mem.as_deref().unwrap_or(&maintenance)),
        ("max_parallel_maintenance_workers", &workers),
        ("max_wal_size", "16GB"),
        ("min_wal_size", "4GB"),
        ("checkpoint_timeout", "1h"),
        ("fsync", "on"),
        ("autovacuum", "off"),
        ("jit", "off"),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// The machine's memory, in bytes.
fn memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    Ok(1024 * kilobytes.unwrap_or(4 * GIB / 1024))
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name"));
    let name = name.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

/// The load average of the last minute.
///
/// # Errors
/// The system does not tell.
pub fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    text.split(' ').next().and_then(|it| it.parse().ok()).context("/proc/loadavg is malformed")
}

/// The cores this process may run on.
///
/// # Errors
/// The system does not tell.
pub fn cores() -> Result<Vec<usize>> {
    // SAFETY: a set of cores is a plain array of bits, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the kernel writes at most the given size into the set, which lives here.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        bail!("cannot tell the cores: {}", std::io::Error::last_os_error());
    }
    let limit = libc::CPU_SETSIZE as usize;
    // SAFETY: the numbers are below the size of the set.
    Ok((0..limit).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// Puts a process, or the calling thread if it is 0, on a core.
///
/// # Errors
/// There is no such process or core, or it is not this user's to put.
pub fn pin(process: i32, core: usize) -> Result<()> {
    ensure!(core < libc::CPU_SETSIZE as usize, "there is no core {core}");
    // SAFETY: a set of cores is a plain array of bits, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the number is below the size of the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the kernel reads the given size from the set, which lives here.
    if unsafe { libc::sched_setaffinity(process, size_of::<libc::cpu_set_t>(), &raw const set) }
        != 0
    {
        let error = std::io::Error::last_os_error();
        bail!("cannot put process {process} on core {core}: {error}");
    }
    Ok(())
}

/// The bytes of the files at these paths.
///
/// # Errors
/// One cannot be asked.
pub fn bytes(paths: &[impl AsRef<Path>]) -> Result<u64> {
    paths.iter().map(|path| Ok(fs::metadata(path)?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_core() {
        let core = *cores().unwrap().last().unwrap();
        let inside = std::thread::spawn(move || {
            pin(0, core).unwrap();
            cores().unwrap()
        });
        assert_eq!(inside.join().unwrap(), [core]);
        assert!(pin(0, usize::MAX).is_err());
    }
}
