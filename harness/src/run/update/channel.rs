//! Migration channels, valid and invalid.

use std::path::Path;

use serde_json::{Value, json};

use crate::process::environment::{EnvironmentError, make_folder};
use crate::run::update::mounts::Mounted;
use crate::scenario::Channel;

/// A channel that is ready to be used.
pub struct Prepared {
    /// The arguments of `migrate`.
    pub arguments: Value,
    /// The state file passed to the new VMM; a dummy if the channel is not a file.
    pub state: String,
    /// A file system mounted for the channel.
    _mounted: Option<Mounted>,
}

/// Prepares `channel` in `folder`; `number` distinguishes the updates of a case.
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
            let small = Mounted::small_tmpfs(folder.join("small"), channel == Channel::ReadOnly)?;
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
    let arguments = match channel {
        Channel::OnlyCpr => {
            let address = json!({"transport": "file", "filename": path, "offset": 0});
            json!({"channels": [{"channel-type": "cpr", "addr": address}]})
        }
        _ => json!({ "uri": uri }),
    };
    Ok(Prepared { arguments, state: path, _mounted: mounted })
}
