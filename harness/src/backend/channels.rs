//! The two channels of a `cpr-transfer`.

use std::path::Path;

use serde_json::{Value, json};

/// The sockets on which a new VMM waits to take over a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channels {
    /// For the state of the devices.
    pub main: String,
    /// For the state that the new VMM needs before it creates the VM, with the descriptors.
    pub cpr: String,
}

impl Channels {
    /// The sockets of update `number`, in the folder of its case.
    pub fn new(folder: &Path, number: u32) -> Self {
        // The case has checked that its folder is valid UTF-8.
        let path =
            |name| folder.join(format!("{name}-{number}.sock")).to_string_lossy().into_owned();
        Self { main: path("main"), cpr: path("cpr") }
    }

    /// The arguments of `migrate`.
    pub fn migrate(&self) -> Value {
        json!({ "channels": [channel("main", &self.main), channel("cpr", &self.cpr)] })
    }

    /// The values of the new VMM's two options for incoming channels.
    pub fn incoming(&self) -> [String; 2] {
        [format!("unix:{}", self.main), channel("cpr", &self.cpr).to_string()]
    }
}

fn channel(kind: &str, path: &str) -> Value {
    let address = json!({ "transport": "socket", "type": "unix", "path": path });
    json!({ "channel-type": kind, "addr": address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_name_the_same_sockets() {
        let channels = Channels::new(Path::new("/w"), 7);
        let [main, cpr] = channels.incoming();
        let asked = channels.migrate();
        assert_eq!(main, "unix:/w/main-7.sock");
        assert_eq!(asked["channels"][0]["addr"]["path"], "/w/main-7.sock");
        assert_eq!(asked["channels"][1], serde_json::from_str::<Value>(&cpr).unwrap());
        assert_eq!(asked["channels"][1]["addr"]["path"], "/w/cpr-7.sock");
    }
}
