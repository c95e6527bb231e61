//! Mounts of a case's own, which go with it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::EnvironmentError;
use super::command::make_folder;

/// Gives this thread, and the VMs it starts, mounts of their own.
pub fn private_mounts() -> Result<(), EnvironmentError> {
    let error = |source| EnvironmentError::Mount { path: "/".into(), source };
    unshare(CloneFlags::CLONE_NEWNS).map_err(error)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(error)
}

/// Why a case cannot mount anything here, if it cannot.
pub fn unmet() -> Option<String> {
    static UNMET: OnceLock<Option<String>> = OnceLock::new();
    UNMET.get_or_init(try_out).clone()
}

/// Root in a container may lack the capability. Tried in a thread that takes its mounts with it.
fn try_out() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("mounting needs root".into());
    }
    let tried = std::thread::Builder::new()
        .name("mounts".into())
        .spawn(private_mounts)
        .map_err(EnvironmentError::Thread)
        .and_then(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    tried.err().map(|e| format!("mounting needs CAP_SYS_ADMIN: {e}"))
}

/// A mount; undone when dropped.
pub struct Mounted {
    /// Where.
    pub at: PathBuf,
}

impl Mounted {
    /// A tmpfs of one page: a file can be made, a state does not fit.
    pub fn small_tmpfs(at: PathBuf, read_only: bool) -> Result<Self, EnvironmentError> {
        make_folder(&at)?;
        let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let mounted = mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some("size=4k"));
        Self::new(at, mounted)
    }

    /// The file `source` once more at `at`, where it must not be executed.
    pub fn not_executable(source: &Path, at: PathBuf) -> Result<Self, EnvironmentError> {
        std::fs::write(&at, "").map_err(EnvironmentError::file("write", &at))?;
        let bound = mount(Some(source), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        let mounted = Self::new(at, bound)?;
        // A bind mount has the flags of its source until they are changed.
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOEXEC;
        mount(None::<&str>, &mounted.at, None::<&str>, flags, None::<&str>)
            .map_err(|source| EnvironmentError::Mount { path: mounted.at.clone(), source })?;
        Ok(mounted)
    }

    fn new(at: PathBuf, mounted: nix::Result<()>) -> Result<Self, EnvironmentError> {
        match mounted {
            Ok(()) => Ok(Self { at }),
            Err(source) => Err(EnvironmentError::Mount { path: at, source }),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}
