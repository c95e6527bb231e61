//! The channels through which a VM moves to another process.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use serde_json::{Value, json};

use crate::observe::listening;
use crate::scenario::{Channel, Migrate, Mode};

/// Where a new VMM in another process gets the VM from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channels {
    /// For the state of the devices, and in mode `normal` RAM.
    pub main: Main,
    /// A socket for the state that the new VMM needs before it creates the VM, with the descriptors
    /// (`cpr-transfer`).
    pub cpr: Option<String>,
}

/// The main channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Main {
    /// The Unix socket on which the new VMM waits.
    Unix(String),
    /// The TCP port of this host on which it waits.
    Tcp(u16),
    /// The file that the old VMM has written.
    File(String),
}

impl Main {
    fn uri(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix:{path}"),
            Self::Tcp(port) => format!("tcp:{}:{port}", Ipv4Addr::LOCALHOST),
            Self::File(path) => format!("file:{path}"),
        }
    }
}

impl Channels {
    /// The channels of a new VMM that waits for update `number`, in the folder of its case.
    pub fn waiting(migrate: &Migrate, folder: &Path, number: u32) -> io::Result<Self> {
        let cpr = (migrate.mode == Mode::CprTransfer).then(|| socket("cpr", folder, number));
        let main = match migrate.channel {
            Channel::Tcp => {
                // Free now. If another program takes it first, the new VMM ends and says so.
                let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                Main::Tcp(free.local_addr()?.port())
            }
            _ => Main::Unix(socket("main", folder, number)),
        };
        Ok(Self { main, cpr })
    }

    /// The channel of a VMM that loads the VM from the file `path`.
    pub fn file(path: String) -> Self {
        Self { main: Main::File(path), cpr: None }
    }

    /// The arguments of `migrate`.
    pub fn migrate(&self) -> Value {
        let (Main::Unix(main), Some(cpr)) = (&self.main, &self.cpr) else {
            return json!({ "uri": self.main.uri() });
        };
        json!({ "channels": [channel("main", main), channel("cpr", cpr)] })
    }

    /// The values of the new VMM's options for incoming channels.
    pub fn incoming(&self) -> Vec<String> {
        let cpr = self.cpr.as_ref().map(|path| channel("cpr", path).to_string());
        std::iter::once(self.main.uri()).chain(cpr).collect()
    }

    /// Whether the new VMM waits, rather than loads a file.
    pub fn wait(&self) -> bool {
        !matches!(self.main, Main::File(_))
    }

    /// The address to which the old VMM connects first.
    pub fn first(&self) -> String {
        self.cpr.clone().unwrap_or_else(|| match &self.main {
            Main::Unix(path) | Main::File(path) => path.clone(),
            Main::Tcp(_) => self.main.uri(),
        })
    }

    /// Whether the new VMM listens where the old one connects first.
    pub fn are_listened_on(&self) -> bool {
        match (&self.cpr, &self.main) {
            (Some(path), _) | (None, Main::Unix(path)) => listening::on(Path::new(path)),
            (None, Main::Tcp(port)) => listening::on_port(*port),
            (None, Main::File(_)) => false,
        }
    }

    /// The paths of its sockets.
    pub fn sockets(&self) -> Vec<&str> {
        let main = match &self.main {
            Main::Unix(path) => Some(path.as_str()),
            Main::Tcp(_) | Main::File(_) => None,
        };
        main.into_iter().chain(self.cpr.as_deref()).collect()
    }
}

/// The path of a socket. The case has checked that its folder is valid UTF-8.
fn socket(name: &str, folder: &Path, number: u32) -> String {
    folder.join(format!("{name}-{number}.sock")).to_string_lossy().into_owned()
}

fn channel(kind: &str, path: &str) -> Value {
    let address = json!({ "transport": "socket", "type": "unix", "path": path });
    json!({ "channel-type": kind, "addr": address })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(mode: Mode, channel: Channel) -> Channels {
        let migrate = Migrate { mode, channel, ..Migrate::default() };
        Channels::waiting(&migrate, Path::new("/w"), 7).unwrap()
    }

    #[test]
    fn both_sides_of_a_transfer_name_the_same_sockets() {
        let channels = waiting(Mode::CprTransfer, Channel::File);
        let [main, cpr] = channels.incoming().try_into().unwrap();
        let asked = channels.migrate();
        assert_eq!(main, "unix:/w/main-7.sock");
        assert_eq!(asked["channels"][0]["addr"]["path"], "/w/main-7.sock");
        assert_eq!(asked["channels"][1], serde_json::from_str::<Value>(&cpr).unwrap());
        assert_eq!(asked["channels"][1]["addr"]["path"], "/w/cpr-7.sock");
        assert_eq!(channels.first(), "/w/cpr-7.sock");
        assert_eq!(channels.sockets(), ["/w/main-7.sock", "/w/cpr-7.sock"]);
    }

    #[test]
    fn both_sides_of_a_copy_name_the_same_address() {
        let unix = waiting(Mode::Normal, Channel::Unix);
        assert_eq!(unix.incoming(), ["unix:/w/main-7.sock"]);
        assert_eq!(unix.migrate(), json!({ "uri": "unix:/w/main-7.sock" }));
        let tcp = waiting(Mode::Normal, Channel::Tcp);
        assert_eq!(tcp.migrate()["uri"], json!(tcp.incoming()[0]));
        assert!(tcp.first().starts_with("tcp:127.0.0.1:") && tcp.sockets().is_empty());
        assert!(tcp.wait() && !tcp.are_listened_on());
        let file = Channels::file("/w/state-7".into());
        assert_eq!(file.incoming(), ["file:/w/state-7"]);
        assert!(!file.wait() && file.sockets().is_empty());
    }
}
