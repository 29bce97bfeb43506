//! A private PostgreSQL with the extension in it.
//!
//! PostgreSQL finds its files relative to its programs, so a copy of them anywhere is a whole
//! installation: nothing of the system's is written, no root is needed, and the extension can be
//! replaced while a server runs.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};

use crate::command::{output, watched};
use crate::progress::Progress;
use crate::provision::{self, PostgreSql};
use crate::state::{self, State};

/// Which installation the tree is a copy of, and where its programs are.
const STAMP: &str = ".copy-of";

/// What a private PostgreSQL is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To serve clusters, with the extension as users get it.
    Clusters,
    /// To be written to by `cargo pgrx test`, which installs the extension with its tests in it,
    /// over whatever a running server may have mapped.
    PgrxTest,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Purpose::Clusters => "pg",
            Purpose::PgrxTest => "pg-test",
        }
    }
}

/// A private PostgreSQL.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
    bin: PathBuf,
    target: PathBuf,
}

impl Tree {
    /// The tree that has been installed for clusters.
    ///
    /// # Errors
    /// None has been.
    pub fn open(state: &State) -> Result<Tree> {
        Tree::open_for(state, Purpose::Clusters)
    }

    fn open_for(state: &State, purpose: Purpose) -> Result<Tree> {
        let root = state.path(purpose.name());
        let stamp = fs::read_to_string(root.join(STAMP))
            .with_context(|| format!("no PostgreSQL in {}", root.display()))
            .context("run `cargo verify --only install` first")?;
        let bin = stamp.lines().next().unwrap_or_default();
        let target = state::target().join(format!("drift-build-{}", purpose.name()));
        Ok(Tree { bin: root.join(bin), root, target })
    }

    /// Tells one build of the extension from another.
    ///
    /// # Errors
    /// The extension's files cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        for (option, prefix) in [("--pkglibdir", ""), ("--sharedir", "extension")] {
            let dir = output(Command::new(self.bin("pg_config")).arg(option))?;
            let dir = Path::new(dir.trim()).join(prefix);
            let mut files: Vec<PathBuf> = fs::read_dir(&dir)
                .with_context(|| format!("cannot read {}", dir.display()))?
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<_>>()?;
            files.retain(|it| {
                it.file_name().is_some_and(|it| it.as_bytes().starts_with(b"drift_pg"))
            });
            files.sort();
            ensure!(!files.is_empty(), "no extension in {}", dir.display());
            for file in files {
                fs::read(file)?.hash(&mut hasher);
            }
        }
        Ok(format!("{:016x}", hasher.finish()))
    }

    /// A cargo that builds the extension for this PostgreSQL, in a target directory that no cargo
    /// with other settings touches.
    pub fn cargo(&self) -> Command {
        let mut command = provision::cargo();
        command.env("PGRX_HOME", self.pgrx_home()).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// Where pgrx finds this PostgreSQL named.
    fn pgrx_home(&self) -> PathBuf {
        self.root.join(".pgrx")
    }

    /// The directory of all its files.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a program.
    pub fn bin(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }
}

/// What [`all`] has done.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The private PostgreSQL.
    pub tree: Tree,
    /// Whether any of its files are new: a running server has older ones.
    pub changed: bool,
}

/// Everything, from the system's packages to the extension built in release mode.
///
/// # Errors
/// Something is missing and cannot be installed, or the extension does not build.
pub fn all(state: &State) -> Result<Installed> {
    let lock = File::create(state.path("install.lock"))?;
    lock.lock()?;
    let (tree, copied) = postgresql(state, Purpose::Clusters)?;
    let changed = extension(state, &tree)?;
    Ok(Installed { tree, changed: changed || copied })
}

/// A private PostgreSQL, without the extension, and what builds extensions for it. Returns
/// whether the copy is new.
///
/// # Errors
/// Something is missing and cannot be installed, or the copy cannot be written.
pub fn postgresql(state: &State, purpose: Purpose) -> Result<(Tree, bool)> {
    let system = provision::packages()?;
    provision::cargo_pgrx()?;
    let (tree, copied) = copy(state, purpose, &system)?;
    let home = tree.pgrx_home();
    if !home.join("config.toml").exists() {
        fs::create_dir_all(&home)?;
        let pg_config = tree.bin("pg_config");
        let mut command = tree.cargo();
        command.args(["pgrx", "init"]).arg(format!("--pg15={}", pg_config.display()));
        output(&mut command)?;
    }
    Ok((tree, copied))
}

fn copy(state: &State, purpose: Purpose, system: &PostgreSql) -> Result<(Tree, bool)> {
    let prefix =
        common_prefix(&[&system.bin, &system.pkglib, &system.share, &system.include_server]);
    let relative = |path: &Path| path.strip_prefix(&prefix).map(Path::to_owned);
    let server = fs::metadata(system.bin.join("postgres"))?;
    let stamp = format!(
        "{}\n{}\n{}\n{} {}\n",
        relative(&system.bin)?.display(),
        system.version,
        system.bin.display(),
        server.size(),
        server.mtime()
    );
    let root = state.path(purpose.name());
    if fs::read_to_string(root.join(STAMP)).is_ok_and(|found| found == stamp) {
        return Ok((Tree::open_for(state, purpose)?, false));
    }
    let new = state.path(format!("{}.new", purpose.name()));
    remove(&new)?;
    // The library directory may lie in that of the programs' or the other way round.
    let mut copied: Vec<&Path> = Vec::new();
    for dir in [&system.bin, &system.pkglib, &system.share] {
        if copied.iter().any(|parent| dir.starts_with(parent)) {
            continue;
        }
        let to = new.join(relative(dir)?);
        fs::create_dir_all(&to)?;
        output(Command::new("cp").arg("-a").arg(dir.join(".")).arg(&to))?;
        copied.push(dir);
    }
    let include = new.join(relative(&system.include_server)?);
    fs::create_dir_all(include.parent().unwrap_or(&new))?;
    symlink(&system.include_server, include)?;
    fs::write(new.join(STAMP), stamp)?;
    remove(&root)?;
    fs::rename(&new, &root)?;
    Ok((Tree::open_for(state, purpose)?, true))
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn common_prefix(paths: &[&PathBuf]) -> PathBuf {
    let Some((first, rest)) = paths.split_first() else { return PathBuf::new() };
    let shared = |dir: &&Path| rest.iter().all(|path| path.starts_with(dir));
    first.ancestors().find(shared).unwrap_or(Path::new("")).to_owned()
}

/// Builds the extension in release mode and installs it. Returns whether any file is new.
///
/// # Errors
/// It does not build, or cannot be written.
pub fn extension(state: &State, tree: &Tree) -> Result<bool> {
    let progress = Progress::bar("Building the extension", crates(tree));
    let stage = state.path("stage");
    remove(&stage)?;
    let mut command = tree.cargo();
    command.args(["pgrx", "package", "--package", "drift_pg", "--pg-config"]);
    command.arg(tree.bin("pg_config")).arg("--out-dir").arg(&stage);
    watched(&mut command, |line| {
        let mut words = line.split_whitespace();
        if words.next() == Some("Compiling") {
            progress.advance(1);
            progress.note(words.next().unwrap_or_default());
        }
    })?;
    let staged = stage.join(tree.root.strip_prefix("/").unwrap_or(&tree.root));
    let (mut found, mut changed) = (false, false);
    let mut dirs = vec![staged.clone()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir);
        let entries = entries.with_context(|| format!("cannot read {}", dir.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            found |= path.extension().is_some_and(|extension| extension == "so");
            changed |= replace(&path, &tree.root.join(path.strip_prefix(&staged)?))?;
        }
    }
    ensure!(found, "cargo pgrx package has left no library in {}", staged.display());
    progress.done(if changed { "installed" } else { "up to date" });
    Ok(changed)
}

/// How many crates the extension consists of; 0 if cargo does not say.
fn crates(tree: &Tree) -> u64 {
    let mut command = tree.cargo();
    command.args(["tree", "--package", "drift_pg", "--edges", "normal,build", "--prefix", "none"]);
    let tree = output(&mut command).unwrap_or_default();
    let mut crates: Vec<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    crates.sort_unstable();
    crates.dedup();
    crates.len() as u64
}

/// Puts a file in the place of another, by renaming: a server that has mapped the old one keeps
/// it. Returns whether they differ.
fn replace(from: &Path, to: &Path) -> Result<bool> {
    let bytes = fs::read(from)?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let dir = to.parent().context("a file without a directory")?;
    fs::create_dir_all(dir)?;
    let mut temporary = to.to_owned().into_os_string();
    temporary.push(".new");
    fs::copy(from, &temporary)?;
    fs::rename(&temporary, to)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_a_new_inode() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("sub/to"));
        fs::write(&from, "1").unwrap();
        assert!(replace(&from, &to).unwrap());
        assert!(!replace(&from, &to).unwrap());
        let before = fs::metadata(&to).unwrap().ino();
        let held = fs::File::open(&to).unwrap();
        fs::write(&from, "2").unwrap();
        assert!(replace(&from, &to).unwrap());
        assert_ne!(before, fs::metadata(&to).unwrap().ino());
        assert_eq!(before, held.metadata().unwrap().ino());
        assert_eq!(fs::read_to_string(&to).unwrap(), "2");
    }

    #[test]
    fn the_common_prefix_is_a_directory() {
        let paths = ["/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/15/lib", "/usr/share/p"];
        let paths = paths.map(PathBuf::from);
        assert_eq!(common_prefix(&paths.each_ref()), Path::new("/usr"));
        let paths = ["/usr/local/pgsql/bin", "/usr/local/pgsql/lib"].map(PathBuf::from);
        assert_eq!(common_prefix(&paths.each_ref()), Path::new("/usr/local/pgsql"));
    }
}
