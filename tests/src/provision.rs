//! What has to be on the machine: PostgreSQL 15 with its server headers, a C compiler and
//! libclang for the bindings, cargo-pgrx.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};

use crate::command::{display, output, succeeds, watched};
use crate::progress::Progress;
use crate::state;
use crate::user;

/// The version of cargo-pgrx: that of the crate pgrx.
const PGRX: &str = "0.18.1";

/// PostgreSQL as it is installed on the machine; the harness only reads it.
#[derive(Clone, Debug)]
pub struct PostgreSql {
    /// What `pg_config --version` says.
    pub version: String,
    /// Programs.
    pub bin: PathBuf,
    /// Loadable libraries.
    pub pkglib: PathBuf,
    /// Files shared between architectures.
    pub share: PathBuf,
    /// Headers of the server.
    pub include_server: PathBuf,
}

impl PostgreSql {
    fn at(pg_config: &Path) -> Option<PostgreSql> {
        let ask = |what: &str| {
            let answer = output(Command::new(pg_config).arg(what)).ok()?;
            Some(answer.trim().to_owned())
        };
        let path = |what: &str| Some(PathBuf::from(ask(what)?));
        let found = PostgreSql {
            version: ask("--version")?,
            bin: path("--bindir")?,
            pkglib: path("--pkglibdir")?,
            share: path("--sharedir")?,
            include_server: path("--includedir-server")?,
        };
        found.version.starts_with("PostgreSQL 15.").then_some(found)
    }

    fn find() -> Option<PostgreSql> {
        let debian = PathBuf::from("/usr/lib/postgresql/15/bin/pg_config");
        let red_hat = PathBuf::from("/usr/pgsql-15/bin/pg_config");
        let path = env::var_os("PATH").unwrap_or_default();
        let in_path = env::split_paths(&path).map(|dir| dir.join("pg_config"));
        let named = env::var_os("PG15_PG_CONFIG").map(PathBuf::from);
        named.into_iter().chain([debian, red_hat]).chain(in_path).find_map(|it| Self::at(&it))
    }

    fn has_server(&self) -> bool {
        ["postgres", "initdb", "psql", "pg_basebackup"].iter().all(|it| self.bin.join(it).exists())
    }

    fn has_headers(&self) -> bool {
        self.include_server.join("postgres.h").exists()
    }
}

/// The Debian packages that are missing, with what each is for.
fn missing() -> Vec<(&'static str, &'static str)> {
    let postgresql = PostgreSql::find();
    let needs = [
        (
            postgresql.as_ref().is_some_and(PostgreSql::has_server),
            "postgresql-15",
            "the PostgreSQL 15 server",
        ),
        (
            postgresql.as_ref().is_some_and(PostgreSql::has_headers),
            "postgresql-server-dev-15",
            "the headers of the PostgreSQL 15 server",
        ),
        (has_libclang(), "libclang-dev", "libclang, for the bindings to PostgreSQL"),
        (has_compiler(), "gcc", "a C compiler"),
        (has_compiler(), "libc6-dev", "the headers of the C library"),
        (
            has_cargo_pgrx() || succeeds(Command::new("pkg-config").arg("--version")),
            "pkg-config",
            "pkg-config, to build cargo-pgrx",
        ),
        (
            has_cargo_pgrx() || succeeds(Command::new("pkg-config").args(["--exists", "openssl"])),
            "libssl-dev",
            "OpenSSL, to build cargo-pgrx",
        ),
    ];
    needs.into_iter().filter(|need| !need.0).map(|need| (need.1, need.2)).collect()
}

fn has_compiler() -> bool {
    Path::new("/usr/include/stdio.h").exists() && succeeds(Command::new("cc").arg("--version"))
}

/// Whether bindgen will find libclang, and the headers that come with it.
fn has_libclang() -> bool {
    if env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let entries = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let is_libclang = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        name == "libclang.so" || name.starts_with("libclang-") && name.contains(".so")
    };
    let mut dirs: Vec<PathBuf> =
        ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(Into::into).into();
    for dir in entries(Path::new("/usr/lib")) {
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        if name.starts_with("llvm") || name.contains("-linux-") {
            dirs.extend([dir.join("lib"), dir]);
        }
    }
    let library = dirs.iter().any(|dir| entries(dir).iter().any(is_libclang));
    let headers = dirs.iter().any(|dir| {
        let versions = entries(&dir.join("clang"));
        versions.iter().any(|version| version.join("include/stddef.h").exists())
    });
    library && headers
}

/// Finds PostgreSQL 15 and what builds extensions for it; installs with apt what is missing.
///
/// # Errors
/// Something is missing and this user may not install it, or apt fails: the error names the
/// packages and the command that installs them.
pub fn packages() -> Result<PostgreSql> {
    let lacking = missing();
    if !lacking.is_empty() {
        install(&lacking)?;
        let still: Vec<&str> = missing().into_iter().map(|(package, _)| package).collect();
        ensure!(still.is_empty(), "installed, and yet not found: {}", still.join(", "));
    }
    PostgreSql::find().context("PostgreSQL 15 is not found")
}

/// Python 3 with the modules that make a virtual environment.
///
/// # Errors
/// As [`packages`].
pub fn python() -> Result<()> {
    if !succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"])) {
        install(&[("python3-venv", "Python, for the test of pgvector's client")])?;
    }
    Ok(())
}

fn install(lacking: &[(&str, &str)]) -> Result<()> {
    let names: Vec<&str> = lacking.iter().map(|(package, _)| *package).collect();
    let list: String =
        lacking.iter().map(|(package, what)| format!("  {package:<26}{what}\n")).collect();
    let by_hand = format!(
        "these packages are missing:\n{list}install them, then run this again:\n  \
         sudo apt-get update && sudo apt-get install -y {}",
        names.join(" ")
    );
    let apt = succeeds(Command::new("apt-get").arg("--version"));
    let sudo = !user::is_root();
    let allowed = !sudo || succeeds(Command::new("sudo").args(["-n", "true"]));
    if !apt || !allowed {
        bail!("{by_hand}");
    }
    let root = |program: &str, arguments: &[&str]| {
        let mut words = vec!["env", "DEBIAN_FRONTEND=noninteractive", program];
        words.extend(arguments);
        let mut command = if sudo {
            let mut command = Command::new("sudo");
            command.arg("-n");
            command
        } else {
            Command::new(words.remove(0))
        };
        command.args(words);
        command
    };
    let progress = Progress::spinner(&format!("Installing {}", names.join(", ")));
    keep_system_cluster_away(&root)?;
    let apt_get = |arguments: &[&str]| {
        let mut command = root("apt-get", arguments);
        watched(&mut command, |line| progress.note(line))
            .with_context(|| format!("{} failed; {by_hand}", display(&command)))
    };
    apt_get(&["update"])?;
    let options = ["-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends"];
    apt_get(&[&options[..], &names[..]].concat())?;
    progress.done("installed");
    Ok(())
}

/// Debian's package starts a cluster of its own when it is installed. Nobody asked for it here;
/// a machine that has made its choice keeps it.
fn keep_system_cluster_away(root: &impl Fn(&str, &[&str]) -> Command) -> Result<()> {
    let dir = Path::new("/etc/postgresql-common");
    if dir.exists() {
        return Ok(());
    }
    let script = "mkdir -p /etc/postgresql-common/createcluster.d && echo \
                  'create_main_cluster = false' \
                  > /etc/postgresql-common/createcluster.d/no-main-cluster.conf";
    output(&mut root("sh", &["-c", script])).map(drop)
}

fn tools() -> PathBuf {
    state::target().join("tools")
}

/// A cargo that may be started from a program which cargo has started: without the variables that
/// describe that program's package.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(state::workspace());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_package = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_");
        if of_package || text == "CARGO" || text == "CARGO_BIN_NAME" || text == "CARGO_CRATE_NAME" {
            command.env_remove(&name);
        }
    }
    command.env_remove("LD_LIBRARY_PATH").env_remove("PGRX_PG_CONFIG_PATH");
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([tools().join("bin")].into_iter().chain(env::split_paths(&path)));
    if let Ok(path) = path {
        command.env("PATH", path);
    }
    command
}

fn has_cargo_pgrx() -> bool {
    let version = output(cargo().args(["pgrx", "--version"])).unwrap_or_default();
    version.trim() == format!("cargo-pgrx {PGRX}")
}

/// Installs cargo-pgrx below the target directory, unless the PATH has it in the right version.
///
/// # Errors
/// It cannot be built.
pub fn cargo_pgrx() -> Result<()> {
    if has_cargo_pgrx() {
        return Ok(());
    }
    let progress = Progress::spinner(&format!("Building cargo-pgrx {PGRX}"));
    let mut command = cargo();
    command.args(["install", "cargo-pgrx", "--version", &format!("={PGRX}"), "--locked"]);
    command.args(["--force", "--root"]).arg(tools());
    // It is run a few times, for a second each: to optimise it takes minutes.
    command.arg("--debug").env("CARGO_PROFILE_DEV_DEBUG", "0");
    command.env("CARGO_TARGET_DIR", tools().join("build"));
    watched(&mut command, |line| progress.note(line))?;
    ensure!(has_cargo_pgrx(), "cargo-pgrx {PGRX} has been built, and yet `cargo pgrx` is another");
    progress.done(&format!("cargo-pgrx {PGRX}"));
    Ok(())
}
