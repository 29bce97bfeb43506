//! Where the harness keeps everything between runs.

use std::env;
use std::fs::{self, DirBuilder};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

use crate::user::{self, User};

/// The directory of the state, if it is to be elsewhere.
const OVERRIDE: &str = "DRIFT_STATE";

/// The directory of the checkout.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The directory with the private PostgreSQL, the clusters and what building them needs.
#[derive(Clone, Debug)]
pub struct State {
    root: PathBuf,
    user: User,
}

impl State {
    /// Opens the state: `drift` in Cargo's target directory or, where the servers' user may not
    /// pass through to that, a directory below `/var/tmp`. `DRIFT_STATE` names another.
    ///
    /// # Errors
    /// There is no user for servers, or the directory cannot be made, is another user's, or cannot
    /// be reached by the servers' user.
    pub fn open() -> Result<State> {
        let user = User::of_servers()?;
        let root = match env::var_os(OVERRIDE) {
            Some(dir) => workspace().join(dir),
            None => {
                let below_target = target().join("drift");
                if user.reaches(&below_target) {
                    below_target
                } else {
                    PathBuf::from(format!("/var/tmp/drift_pg-{}", Self::tag()))
                }
            }
        };
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let metadata = fs::symlink_metadata(&root)?;
        if !metadata.is_dir() || metadata.uid() != user::uid() {
            bail!("{} is not a directory of the user who runs this", root.display());
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
        if !user.reaches(&root) {
            bail!("user {} cannot pass through to {}", user.name, root.display());
        }
        Ok(State { root, user })
    }

    /// Tells checkouts and users apart in places they share: `<uid>-<hash of the checkout's path>`.
    fn tag() -> String {
        let mut hasher = DefaultHasher::new();
        workspace().hash(&mut hasher);
        format!("{}-{:08x}", user::uid(), hasher.finish() as u32)
    }

    /// The user that runs servers.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// A path in the state.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// A directory in the state, made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn dir(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = self.path(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// A directory in the state that belongs to the servers' user, made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn server_dir(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = self.dir(name)?;
        self.user.own(&dir)?;
        Ok(dir)
    }

    /// A socket directory that stays the same from run to run. It lies in `/tmp`: the whole name
    /// of a Unix socket may have 107 bytes.
    ///
    /// # Errors
    /// The directory cannot be made, or somebody else has made it.
    pub fn socket_dir(&self) -> Result<PathBuf> {
        let dir = PathBuf::from(format!("/tmp/drift-{}", Self::tag()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => self.user.own(&dir)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let metadata = fs::symlink_metadata(&dir)?;
                if !metadata.is_dir() || metadata.uid() != self.user.uid {
                    bail!("{} is not a directory of user {}", dir.display(), self.user.name);
                }
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", dir.display()))
            }
        }
        Ok(dir)
    }
}
