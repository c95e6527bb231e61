//! Migration channels, good and bad.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::EnvironmentError;
use super::command::make_folder;
use crate::scenario::Channel;

/// A channel that is ready to be used.
pub struct Prepared {
    /// The `uri` of `migrate`.
    pub uri: String,
    /// The state file, as the new VMM is told; a dummy where the channel is none.
    pub state: String,
    /// A file system made for it.
    _mounted: Option<Mounted>,
}

/// Makes `channel` in `folder`; `number` tells the updates of a case apart.
pub fn prepare(channel: Channel, folder: &Path, number: u32) -> Result<Prepared, EnvironmentError> {
    let state =
        |folder: &Path| folder.join(format!("state-{number}")).to_string_lossy().into_owned();
    let mut mounted = None;
    let path = match channel {
        Channel::MissingDirectory => state(&folder.join("no-such-directory")),
        Channel::Directory => {
            let path = folder.join("state-directory");
            make_folder(&path)?;
            path.to_string_lossy().into_owned()
        }
        Channel::Full | Channel::ReadOnly => {
            let small = Mounted::new(folder.join("small"), channel)?;
            let path = state(&small.at);
            mounted = Some(small);
            path
        }
        _ => state(folder),
    };
    let uri = match channel {
        Channel::Tcp => "tcp:127.0.0.1:1".to_owned(),
        Channel::Exec => "exec:cat >/dev/null".to_owned(),
        Channel::Unix => format!("unix:{path}.sock"),
        Channel::Fd => "fd:state".to_owned(),
        _ => format!("file:{path}"),
    };
    Ok(Prepared { uri, state: path, _mounted: mounted })
}

/// Gives this thread, and the VMs it starts, mounts of their own.
pub fn private_mounts() -> Result<(), EnvironmentError> {
    let error = |source| EnvironmentError::Mount { path: "/".into(), source };
    unshare(CloneFlags::CLONE_NEWNS).map_err(error)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(error)
}

/// A small tmpfs; unmounted when dropped.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(at: PathBuf, channel: Channel) -> Result<Self, EnvironmentError> {
        let error = |source| EnvironmentError::Mount { path: at.clone(), source };
        make_folder(&at)?;
        let read_only = channel == Channel::ReadOnly;
        let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        // One page: the file can be made, the state does not fit.
        mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some("size=4k")).map_err(error)?;
        Ok(Self { at })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}
