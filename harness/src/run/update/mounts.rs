//! Private mounts of a case, removed when it ends.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::process::environment::{EnvironmentError, make_folder};

/// Gives this thread, and the VMs that it starts, a private mount namespace.
pub fn private_mounts() -> Result<(), EnvironmentError> {
    let error = |source| EnvironmentError::Mount { path: "/".into(), source };
    unshare(CloneFlags::CLONE_NEWNS).map_err(error)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(error)
}

/// Returns why a case cannot mount file systems here, if so.
pub fn unmet() -> Option<String> {
    static UNMET: OnceLock<Option<String>> = OnceLock::new();
    UNMET.get_or_init(try_out).clone()
}

/// Tries it, because root in a container may lack the capability. The thread that tries it takes
/// its mounts with it.
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

/// A mount, unmounted when dropped.
pub struct Mounted {
    /// The mount point.
    pub at: PathBuf,
}

impl Mounted {
    /// Mounts a tmpfs of one page: a file can be created in it, but a state does not fit.
    pub fn small_tmpfs(at: PathBuf, read_only: bool) -> Result<Self, EnvironmentError> {
        make_folder(&at)?;
        let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let mounted = mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some("size=4k"));
        Self::new(at, mounted)
    }

    /// Bind-mounts the file `source` at `at` with `noexec`.
    pub fn not_executable(source: &Path, at: PathBuf) -> Result<Self, EnvironmentError> {
        std::fs::write(&at, "").map_err(EnvironmentError::file("write", &at))?;
        let bound = mount(Some(source), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        let mounted = Self::new(at, bound)?;
        // A bind mount takes the flags of its source; only a remount changes them.
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
