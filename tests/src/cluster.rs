//! Clusters of the private PostgreSQL, each with its own directory and Unix socket.
//!
//! ```no_run
//! use harness::cluster::{Cluster, Stop};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut cluster = Cluster::builder().conf("fsync", "on").start()?;
//! cluster.psql("CREATE EXTENSION drift_pg")?;
//! cluster.kill9()?;
//! cluster.start()?;
//! let row = cluster.connect()?.query_one("SELECT 1", &[])?;
//! # let _: i32 = row.get(0);
//! cluster.stop(Stop::Fast)?;
//! # Ok(())
//! # }
//! ```

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use postgres::{Client, Config, NoTls};
use tempfile::TempDir;

use crate::command::output;
use crate::install::Tree;
use crate::server::Server;
use crate::state::State;
use crate::user;

/// How long a server may take to start or to stop: crash recovery is included.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// The role that owns every cluster.
pub const SUPERUSER: &str = "postgres";

/// What the names of temporary socket directories begin with; a process id follows.
const SOCKETS: &str = "drift.";

/// What every cluster is configured with, before [`Builder::conf`].
const DEFAULTS: [(&str, &str); 6] = [
    ("listen_addresses", ""),
    ("autovacuum", "off"),
    ("fsync", "off"),
    ("timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %b "),
    ("max_wal_size", "4GB"),
];

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Roll back what runs, disconnect everybody, write a checkpoint.
    Fast,
    /// Quit at once; the next start recovers from WAL.
    Immediate,
}

/// A cluster that is to be.
#[derive(Default)]
pub struct Builder {
    conf: Vec<(String, String)>,
    place: Option<(PathBuf, PathBuf)>,
}

impl Builder {
    /// Sets a parameter in `postgresql.conf`.
    #[must_use]
    pub fn conf(mut self, name: &str, value: &str) -> Builder {
        self.conf.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Makes a cluster that outlives this program, in `dir`, with its socket in `socket`. If
    /// there is one already it is used, and [`Builder::conf`] is not looked at.
    #[must_use]
    pub fn lasting(mut self, dir: PathBuf, socket: PathBuf) -> Builder {
        self.place = Some((dir, socket));
        self
    }

    /// Makes the cluster with `initdb` and starts it.
    ///
    /// # Errors
    /// The private PostgreSQL has not been installed, or `initdb` or the server fails.
    pub fn start(self) -> Result<Cluster> {
        let mut cluster = self.open()?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Makes the cluster with `initdb`, if it is not there, and leaves it as it is: a lasting one
    /// may be running.
    ///
    /// # Errors
    /// The private PostgreSQL has not been installed, or `initdb` fails.
    pub fn open(self) -> Result<Cluster> {
        let cluster = match self.place {
            None => Cluster::temporary()?,
            Some((dir, socket)) => {
                let state = State::open()?;
                let tree = Tree::open(&state)?;
                let server = Server::find(&dir.join("data"));
                state.server_dir(&dir)?;
                Cluster { state, tree, dir, socket, server, temporary: None }
            }
        };
        if !cluster.data_dir().join("PG_VERSION").exists() {
            cluster.init(&self.conf)?;
        }
        Ok(cluster)
    }
}

/// A cluster. Unless it is a [lasting](Builder::lasting) one, dropping it stops the server and
/// removes its files; when that happens in a panic, the end of the server's log is printed.
pub struct Cluster {
    state: State,
    tree: Tree,
    dir: PathBuf,
    socket: PathBuf,
    server: Option<Server>,
    /// The socket's directory, of a cluster that goes with this program.
    temporary: Option<TempDir>,
}

impl Cluster {
    /// A cluster with data checksums, without autovacuum and without fsync.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn temporary() -> Result<Cluster> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let state = State::open()?;
        let tree = Tree::open(&state)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        state.server_dir("clusters")?;
        let dir = state.server_dir(format!("clusters/{}-{number}", std::process::id()))?;
        // Whoever may open the socket is superuser of the cluster.
        let socket = tempfile::Builder::new()
            .prefix(&format!("{SOCKETS}{}-", std::process::id()))
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in("/tmp")?;
        state.user().own(socket.path())?;
        let path = socket.path().to_owned();
        Ok(Cluster { state, tree, dir, socket: path, server: None, temporary: Some(socket) })
    }

    /// Makes the data directory under another name first: one that was left half made by a
    /// program that was killed would be taken for a cluster.
    fn init(&self, conf: &[(String, String)]) -> Result<()> {
        let new = self.dir.join("data.new");
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        let mut command = self.as_server("initdb");
        command.args(["--data-checksums", "--no-sync", "--auth=trust", "--encoding=UTF8"]);
        command.args(["--locale=C", "--username", SUPERUSER, "--pgdata"]).arg(&new);
        output(&mut command)?;
        let conf = conf.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in DEFAULTS.into_iter().chain(conf) {
            append(&new, name, value)?;
        }
        fs::rename(new, self.data_dir())?;
        Ok(())
    }

    /// A command of the private PostgreSQL that runs as the servers' user.
    pub fn as_server(&self, program: &str) -> Command {
        let mut command = self.state.user().command(self.tree.bin(program));
        clean_environment(&mut command);
        command
    }

    /// A client program of the private PostgreSQL that connects to this cluster.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.tree.bin(program));
        clean_environment(&mut command);
        command.arg("--host").arg(&self.socket).args(["--username", SUPERUSER]);
        command
    }

    /// Makes a directory beside the cluster's data for the server to use.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn server_dir(&self, name: &str) -> Result<PathBuf> {
        self.state.server_dir(self.dir.join(name))
    }

    /// Appends a parameter to `postgresql.conf`; the server reads it when it starts.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, name: &str, value: &str) -> Result<()> {
        append(&self.data_dir(), name, value)
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The directory of the Unix socket; the port is PostgreSQL's usual one.
    pub fn socket_dir(&self) -> &Path {
        &self.socket
    }

    /// The private PostgreSQL that serves the cluster.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What the server has logged since the cluster was made.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Whether the server runs.
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| !server.is_gone())
    }

    /// Starts the server and waits until it accepts connections: after crash recovery, or on a
    /// standby once it is consistent. A server that runs goes on running.
    ///
    /// # Errors
    /// The server ends, or is not ready in two minutes.
    pub fn start(&mut self) -> Result<()> {
        if !self.is_running() {
            let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
            let mut command = self.as_server("postgres");
            command.arg("-D").arg(self.data_dir()).arg("-k").arg(&self.socket);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            self.server = Some(match self.temporary {
                Some(_) => Server::spawn(command)?,
                None => Server::spawn_lasting(command)?,
            });
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let refused = match self.connect() {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if !self.is_running() {
                self.server = None;
                bail!("the server has ended:\n{}", self.log_tail());
            }
            if Instant::now() > deadline {
                return Err(refused.context(format!("not ready:\n{}", self.log_tail())));
            }
            sleep(PAUSE);
        }
    }

    /// Stops the server and waits until it is gone. One that does not run stays so.
    ///
    /// # Errors
    /// The server has not stopped in two minutes.
    pub fn stop(&mut self, how: Stop) -> Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        let signal = match how {
            Stop::Fast => libc::SIGINT,
            Stop::Immediate => libc::SIGQUIT,
        };
        if !server.is_gone() {
            server.signal(signal)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while !server.is_gone() {
            if Instant::now() > deadline {
                bail!("the server does not stop:\n{}", self.log_tail());
            }
            sleep(PAUSE);
        }
        self.server = None;
        Ok(())
    }

    /// Kills the server and all its processes with SIGKILL, and waits until they are gone.
    ///
    /// # Errors
    /// The server does not run, or cannot be killed.
    pub fn kill9(&mut self) -> Result<()> {
        let mut server = self.server.take().context("the server does not run")?;
        server.kill9(PATIENCE)
    }

    /// Kills one of the server's processes with SIGKILL.
    ///
    /// # Errors
    /// There is no such process.
    pub fn kill_process(&self, pid: i32) -> Result<()> {
        Ok(user::signal(u32::try_from(pid)?, libc::SIGKILL)?)
    }

    /// Stops the server (fast) and starts it.
    ///
    /// # Errors
    /// As [`Cluster::stop`] and [`Cluster::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop(Stop::Fast)?;
        self.start()
    }

    /// Connects to the database `postgres`.
    ///
    /// # Errors
    /// The server does not accept connections.
    pub fn connect(&self) -> Result<Client> {
        self.connect_to("postgres")
    }

    /// Connects to a database.
    ///
    /// # Errors
    /// There is none of that name, or the server does not accept connections.
    pub fn connect_to(&self, database: &str) -> Result<Client> {
        let mut config = Config::new();
        config.host_path(&self.socket).user(SUPERUSER).dbname(database);
        config.connect(NoTls).with_context(|| format!("cannot connect to {database}"))
    }

    /// Runs SQL with psql in the database `postgres`, and returns what it prints: rows only,
    /// unaligned.
    ///
    /// # Errors
    /// A statement fails; the error carries psql's message.
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.psql_in("postgres", sql)
    }

    /// [`Cluster::psql`] in another database.
    ///
    /// # Errors
    /// As [`Cluster::psql`].
    pub fn psql_in(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = self.client("psql");
        command.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"]);
        command.args(["--set", "ON_ERROR_STOP=1", "--dbname", database, "--command", sql]);
        output(&mut command)
    }

    /// Takes a backup with `pg_basebackup`: a cluster of its own, not yet started.
    ///
    /// # Errors
    /// The server does not run, or `pg_basebackup` fails.
    pub fn base_backup(&self) -> Result<Cluster> {
        self.back_up(&[])
    }

    /// Makes a streaming replica from a backup, and starts it.
    ///
    /// # Errors
    /// As [`Cluster::base_backup`] and [`Cluster::start`].
    pub fn standby(&self) -> Result<Cluster> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let slot = format!("standby_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut standby =
            self.back_up(&["--write-recovery-conf", "--create-slot", "--slot", &slot])?;
        standby.start()?;
        Ok(standby)
    }

    fn back_up(&self, options: &[&str]) -> Result<Cluster> {
        let copy = Cluster::temporary()?;
        let mut command = self.as_server("pg_basebackup");
        command.arg("--host").arg(&self.socket).args(["--username", SUPERUSER]);
        command.args(["--checkpoint=fast", "--no-sync", "--pgdata"]).arg(copy.data_dir());
        output(command.args(options))?;
        Ok(copy)
    }

    /// Waits until a standby has replayed everything this server has written so far.
    ///
    /// # Errors
    /// It has not in two minutes, or either server fails.
    pub fn wait_for_catchup(&self, standby: &Cluster) -> Result<()> {
        let mut primary = self.connect()?;
        // The commit record flushes what sessions that do not wait for WAL have left behind.
        primary.batch_execute("SET synchronous_commit = on; SELECT txid_current()")?;
        let row = primary.query_one("SELECT pg_current_wal_flush_lsn()::text", &[])?;
        let target: String = row.get(0);
        let mut standby = standby.connect()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reached = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
            let row = standby.query_one(reached, &[&target])?;
            if row.get::<_, Option<bool>>(0) == Some(true) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the standby has not reached {target}");
            sleep(PAUSE);
        }
    }

    /// The arenas of an index, sorted by name.
    ///
    /// # Errors
    /// There is no such index, or its directory cannot be read.
    pub fn arena_files(&self, database: &str, index: &str) -> Result<Vec<PathBuf>> {
        let mut client = self.connect_to(database)?;
        let row = client.query_one("SELECT pg_relation_filepath($1::text::regclass)", &[&index])?;
        let file = self.data_dir().join(row.get::<_, String>(0));
        let name = file.file_name().context("a relation without a file")?.to_string_lossy();
        let prefix = format!("pgsql_tmp_drift.{name}.");
        let mut found = Vec::new();
        for entry in fs::read_dir(file.parent().context("a file without a directory")?)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) && !name.ends_with(".tmp") {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Bytes of memory that are a process's own: shared buffers it has touched do not count. None
    /// if it is gone.
    pub fn private_memory(&self, pid: i32) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.temporary.is_none() {
            return;
        }
        if panicking() {
            eprintln!("--- the server's log ends with\n{}\n---", self.log_tail());
        }
        if self.stop(Stop::Immediate).is_err() {
            // Nobody is left to tell; the next run removes what stays behind.
            let _ = self.kill9();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn append(data: &Path, name: &str, value: &str) -> Result<()> {
    let mut file = OpenOptions::new().append(true).open(data.join("postgresql.conf"))?;
    writeln!(file, "{name} = '{}'", value.replace('\'', "''"))?;
    Ok(())
}

/// Variables that would make a client or a server do something else than it is told.
fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PG") || text.starts_with("LC_") || text == "LANG" {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C");
}

/// Removes what clusters have left whose program has been killed.
///
/// # Errors
/// A directory cannot be read or removed.
pub fn sweep(state: &State) -> io::Result<()> {
    for (dir, prefix) in [(state.path("clusters"), ""), (PathBuf::from("/tmp"), SOCKETS)] {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let program = name.strip_prefix(prefix).and_then(|rest| rest.split_once('-'));
            let Some(pid) = program.and_then(|(pid, _)| pid.parse::<u32>().ok()) else { continue };
            if Path::new(&format!("/proc/{pid}")).exists() {
                continue;
            }
            if entry.metadata()?.uid() == state.user().uid {
                fs::remove_dir_all(entry.path())?;
            }
        }
    }
    Ok(())
}
