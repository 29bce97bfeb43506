//! pgvector, built from Debian's source package for the private PostgreSQL.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};

use crate::command::{output, succeeds, watched};
use crate::install::Tree;
use crate::progress::Progress;
use crate::state::State;

/// A directory with pgvector's source, for machines without Debian's archive.
const SOURCE: &str = "DRIFT_PGVECTOR_SOURCE";

/// Debian 12 has no pgvector; the next release has, and its source builds here.
const ARCHIVE: &str = "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                       http://deb.debian.org/debian trixie main\n";

/// How pgvector is compiled: as its own Makefile does by default, which Debian's patch turns off.
const FLAGS: &str = "OPTFLAGS=-march=native";

/// Builds and installs pgvector, unless the private PostgreSQL has it. Returns its version.
///
/// # Errors
/// Its source cannot be had, or does not build.
pub fn install(state: &State, tree: &Tree) -> Result<String> {
    if let Some(version) = installed(tree)? {
        return Ok(version);
    }
    let progress = Progress::spinner("Building pgvector");
    let source = match env::var_os(SOURCE) {
        Some(dir) => PathBuf::from(dir),
        None => fetch(state, &progress)?,
    };
    let mut make = Command::new("make");
    make.arg("-C").arg(&source).arg(format!("PG_CONFIG={}", tree.bin("pg_config").display()));
    // Headers would go to the system's: the private PostgreSQL only links to those.
    make.args([FLAGS, "with_llvm=no", "HEADERS=", "clean", "all", "install"]);
    watched(&mut make, |line| progress.note(line))?;
    let version = installed(tree)?.context("pgvector has been built, and yet is not there")?;
    progress.done(&format!("{version} ({FLAGS})"));
    Ok(version)
}

/// The version of the pgvector that the private PostgreSQL has.
fn installed(tree: &Tree) -> Result<Option<String>> {
    let dir = |option: &str| {
        let dir = output(Command::new(tree.bin("pg_config")).arg(option))?;
        anyhow::Ok(PathBuf::from(dir.trim()))
    };
    if !dir("--pkglibdir")?.join("vector.so").exists() {
        return Ok(None);
    }
    let control = dir("--sharedir")?.join("extension/vector.control");
    Ok(fs::read_to_string(control).ok().as_deref().and_then(default_version))
}

fn default_version(control: &str) -> Option<String> {
    let line = control.lines().find(|line| line.trim_start().starts_with("default_version"))?;
    Some(line.split_once('=')?.1.trim().trim_matches('\'').to_owned())
}

/// Fetches the source with lists of packages of its own: the system's stay as they are.
fn fetch(state: &State, progress: &Progress) -> Result<PathBuf> {
    for program in ["apt-get", "dpkg-source", "make", "cc"] {
        ensure!(
            succeeds(Command::new(program).arg("--version")),
            "{program} is missing: pgvector is built from Debian's source package; {SOURCE} can \
             name a directory with its source"
        );
    }
    let dir = state.dir("pgvector")?;
    let (lists, cache) = (state.dir("pgvector/lists/partial")?, state.dir("pgvector/cache")?);
    state.dir("pgvector/cache/archives/partial")?;
    let sources = dir.join("sources.list");
    fs::write(&sources, ARCHIVE)?;
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(&dir).env("LC_ALL", "C");
        command.arg("-o").arg(option("Dir::Etc::sourcelist", &sources));
        command.args(["-o", "Dir::Etc::sourceparts=/dev/null"]);
        command.arg("-o").arg(option("Dir::State::lists", lists.parent().unwrap_or(&lists)));
        command.arg("-o").arg(option("Dir::Cache", &cache));
        watched(command.args(arguments), |line| progress.note(line))
    };
    apt_get(&["update"])?;
    apt_get(&["source", "pgvector"])?;
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        if path.join("vector.control").exists() {
            return Ok(path);
        }
    }
    bail!("apt-get has fetched pgvector's source, and yet it is not in {}", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_in_the_control_file() {
        let control = "comment = 'x'\ndefault_version = '0.8.0'\nrelocatable = true\n";
        assert_eq!(default_version(control).as_deref(), Some("0.8.0"));
        assert_eq!(default_version("comment = 'x'"), None);
    }
}
