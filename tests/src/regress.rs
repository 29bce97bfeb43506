//! SQL regression tests: scripts in `tests/regress/sql`, each run by psql in a database of its
//! own that has the extension; what it prints must be `tests/regress/expected/<name>.out`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};

use crate::cluster::Cluster;
use crate::state::{self, State};

/// How many scripts printed what they should, and how many did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// As expected.
    pub passed: u64,
    /// Otherwise.
    pub failed: u64,
}

/// Runs every script; prints a line for each, and the difference where there is one. With
/// `accept`, what the scripts print becomes what is expected.
///
/// # Errors
/// There are no scripts, the cluster does not start, or a file cannot be read or written.
pub fn run(state: &State, accept: bool) -> Result<Outcome> {
    let dir = state::workspace().join("tests/regress");
    let results = state.dir("regress")?;
    let mut scripts: Vec<PathBuf> = fs::read_dir(dir.join("sql"))
        .context("cannot read tests/regress/sql")?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    scripts.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    scripts.sort();
    ensure!(!scripts.is_empty(), "there are no scripts in tests/regress/sql");
    let cluster = Cluster::builder().start()?;
    let mut outcome = Outcome::default();
    for script in &scripts {
        let name = script.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let expected = dir.join("expected").join(format!("{name}.out"));
        let actual = results.join(format!("{name}.out"));
        run_script(&cluster, &dir, script, &name, &actual)?;
        if accept {
            fs::copy(&actual, &expected)?;
        }
        match difference(&expected, &actual)? {
            None => {
                outcome.passed += 1;
                println!("test {name} ... ok");
            }
            Some(difference) => {
                outcome.failed += 1;
                let path = results.join(format!("{name}.diff"));
                fs::write(&path, &difference)?;
                println!("test {name} ... FAILED\n{difference}({})", path.display());
            }
        }
    }
    let verdict = if outcome.failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {} passed; {} failed", outcome.passed, outcome.failed);
    Ok(outcome)
}

fn run_script(
    cluster: &Cluster,
    dir: &Path,
    script: &Path,
    name: &str,
    actual: &Path,
) -> Result<()> {
    let database = format!("regress_{name}");
    cluster.psql(&format!("CREATE DATABASE \"{database}\" TEMPLATE template0"))?;
    cluster.psql_in(&database, "CREATE EXTENSION drift_pg")?;
    let mut command = cluster.client("psql");
    command.args(["--no-psqlrc", "--echo-all", "--quiet", "--dbname", &database]);
    command.args(["--set", "HIDE_TABLEAM=on", "--set", "HIDE_TOAST_COMPRESSION=on"]);
    command.env("PGTZ", "UTC").env("PGDATESTYLE", "ISO, MDY").env("PGCLIENTENCODING", "UTF8");
    let out = File::create(actual)?;
    command.current_dir(dir).stdin(File::open(script)?).stdout(out.try_clone()?).stderr(out);
    // psql fails when the connection is lost. The output says so where it happened.
    command.status().context("cannot run psql")?;
    Ok(())
}

/// What differs, as a unified diff.
fn difference(expected: &Path, actual: &Path) -> Result<Option<String>> {
    let mut command = Command::new("diff");
    command.args(["-u", "--new-file", "--label", "expected", "--label", "actual"]);
    let output = command.arg(expected).arg(actual).output().context("cannot run diff")?;
    ensure!(
        matches!(output.status.code(), Some(0 | 1)),
        "diff: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let same = output.status.success() && expected.exists();
    Ok((!same).then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_without_expected_output_fails() {
        let dir = tempfile::tempdir().unwrap();
        let (expected, actual) = (dir.path().join("expected"), dir.path().join("actual"));
        fs::write(&actual, "").unwrap();
        assert!(difference(&expected, &actual).unwrap().is_some());
        fs::write(&expected, "").unwrap();
        assert!(difference(&expected, &actual).unwrap().is_none());
        fs::write(&actual, "1\n").unwrap();
        assert!(difference(&expected, &actual).unwrap().unwrap().contains("+1"));
    }
}
