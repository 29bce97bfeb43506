//! The user of the operating system that runs servers.
//!
//! PostgreSQL refuses to run as root. Where the harness runs as root, servers run as `postgres`,
//! or as `nobody` on a machine without that user; elsewhere they run as whoever runs the harness.

use std::fs;
use std::io;
use std::os::unix::fs::{chown, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{bail, Context, Result};

/// A user of the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name in `/etc/passwd`; its number if it has none.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

/// The number of the user that runs this process.
pub fn uid() -> u32 {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() }
}

fn gid() -> u32 {
    // SAFETY: getegid takes nothing, touches no memory and cannot fail.
    unsafe { libc::getegid() }
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    uid() == 0
}

impl User {
    /// The user that runs servers.
    ///
    /// # Errors
    /// This process runs as root, and the machine has neither a user `postgres` nor `nobody`.
    pub fn of_servers() -> Result<User> {
        let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        if is_root() {
            for name in ["postgres", "nobody"] {
                if let Some(user) = users(&passwd).find(|user| user.name == name) {
                    return Ok(user);
                }
            }
            bail!("servers cannot run as root, and there is no user postgres or nobody");
        }
        let (uid, gid) = (uid(), gid());
        let name = users(&passwd).find(|user| user.uid == uid).map(|user| user.name);
        Ok(User { name: name.unwrap_or_else(|| uid.to_string()), uid, gid })
    }

    /// A command that runs as this user.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        if self.uid != uid() {
            command.uid(self.uid).gid(self.gid);
            command.env("HOME", "/tmp").env("USER", &self.name).env("LOGNAME", &self.name);
        }
        command.current_dir("/");
        command
    }

    /// Makes the user the owner of a file or directory.
    ///
    /// # Errors
    /// As `chown`.
    pub fn own(&self, path: &Path) -> io::Result<()> {
        if self.uid == uid() {
            return Ok(());
        }
        chown(path, Some(self.uid), Some(self.gid))
    }

    /// Whether the user may pass through the directory and each of its parents. A directory that
    /// does not exist is taken for one that can be made passable.
    pub fn reaches(&self, dir: &Path) -> bool {
        self.uid == uid()
            || dir.ancestors().all(|dir| match fs::metadata(dir) {
                Ok(metadata) => {
                    let mode = metadata.mode();
                    if metadata.uid() == self.uid {
                        mode & 0o100 != 0
                    } else if metadata.gid() == self.gid {
                        mode & 0o010 != 0
                    } else {
                        mode & 0o001 != 0
                    }
                }
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            })
    }
}

fn users(passwd: &str) -> impl Iterator<Item = User> + '_ {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name, uid, gid })
    })
}

/// Asks the kernel to stop the command's process, as `pg_ctl stop -m immediate` does, when this
/// one is gone: a test that is killed leaves no server behind.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let hook = move || {
        // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: getppid takes nothing, touches no memory and cannot fail.
        if unsafe { libc::getppid() } as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes two system calls; it allocates nothing and
    // takes no lock.
    unsafe { command.pre_exec(hook) };
}

/// Sends a signal to a process.
///
/// # Errors
/// As `kill`: the process is gone, or is another user's.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: kill touches no memory of this process.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\npostgres:x:101:104:,,:/var:/bin/sh\n";
        let user = users(passwd).last().unwrap();
        assert_eq!(user, User { name: "postgres".into(), uid: 101, gid: 104 });
        assert_eq!(users(passwd).count(), 2);
    }

    #[test]
    fn a_closed_directory_is_not_reached_by_others() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let stranger = User { name: "stranger".into(), uid: u32::MAX - 7, gid: u32::MAX - 7 };
        assert!(!stranger.reaches(&inner));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(stranger.reaches(&inner));
        assert!(stranger.reaches(&inner.join("absent")));
    }
}
