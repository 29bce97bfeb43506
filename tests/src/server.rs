//! The process of a server.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use crate::user;

/// A postmaster.
pub(crate) enum Server {
    /// Started by this program.
    Child(Child),
    /// Found running.
    Found(u32),
}

impl Server {
    /// Starts a server that ends when this program does.
    pub(crate) fn spawn(mut command: Command) -> Result<Server> {
        user::die_with_parent(&mut command);
        spawn_for_good(command).context("cannot start the server").map(Server::Child)
    }

    /// Starts a server that outlives this program.
    pub(crate) fn spawn_lasting(mut command: Command) -> Result<Server> {
        // Not in the terminal's process group, or an interrupt meant for us would stop it.
        let child = command.process_group(0).spawn().context("cannot start the server")?;
        Ok(Server::Child(child))
    }

    /// The server that runs with a data directory, by its `postmaster.pid`.
    pub(crate) fn find(data: &Path) -> Option<Server> {
        let file = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().parse().ok()?;
        // After a crash of the machine the number may be another program's.
        let same = fs::read_link(format!("/proc/{pid}/cwd"))
            .is_ok_and(|cwd| fs::canonicalize(data).is_ok_and(|data| data == cwd));
        same.then_some(Server::Found(pid))
    }

    pub(crate) fn pid(&self) -> u32 {
        match self {
            Server::Child(child) => child.id(),
            Server::Found(pid) => *pid,
        }
    }

    pub(crate) fn is_gone(&mut self) -> bool {
        match self {
            Server::Child(child) => !matches!(child.try_wait(), Ok(None)),
            Server::Found(pid) => is_gone(*pid),
        }
    }

    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        user::signal(self.pid(), signal).context("cannot signal the server")
    }

    pub(crate) fn kill9(&mut self, patience: Duration) -> Result<()> {
        let postmaster = self.pid();
        // Stopped, it starts no process that would be missed below.
        self.signal(libc::SIGSTOP)?;
        let mut processes = children(postmaster)?;
        processes.push(postmaster);
        for &pid in &processes {
            match user::signal(pid, libc::SIGKILL) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error.into()),
                _ => {}
            }
        }
        let deadline = Instant::now() + patience;
        while !self.is_gone() || processes.iter().any(|&pid| !is_gone(pid)) {
            ensure!(Instant::now() < deadline, "the server's processes survive SIGKILL");
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// Starts the command from a thread that never ends: the kernel sends the signal of
/// [`user::die_with_parent`] when the *thread* which started the process is gone, and tests run in
/// threads that may end before their cluster does.
fn spawn_for_good(command: Command) -> Result<Child> {
    type Request = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, reply) in receiver {
                // Whoever asked may have panicked meanwhile.
                let _ = reply.send(command.process_group(0).spawn());
            }
        });
        Mutex::new(sender)
    });
    let (reply, answer) = channel();
    let sender = spawner.lock().unwrap_or_else(PoisonError::into_inner).clone();
    sender.send((command, reply)).ok().context("the thread that starts servers has ended")?;
    Ok(answer.recv()??)
}

/// The state and the parent of a process, from `/proc/<pid>/stat`.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether the process has ended; one that nobody has waited for yet has.
fn is_gone(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

fn children(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        if stat(pid).is_some_and(|(_, of)| of == parent) {
            found.push(pid);
        }
    }
    Ok(found)
}
