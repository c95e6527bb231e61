//! What the first process in a lab is told, in a file of its initramfs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The file.
pub const FILE: &str = "/lab.json";

/// What to set up, and what to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The modules to load, in this order.
    pub modules: Vec<PathBuf>,
    /// The folders to mount.
    pub shares: Vec<Share>,
    /// PCI addresses of the devices for vfio-pci.
    pub devices: Vec<String>,
    /// Number of huge pages to reserve.
    pub huge_pages: u32,
    /// Whether there is memory that outlives a restart of the lab's kernel.
    pub keeps_memory: bool,
    /// How often the kernel was restarted.
    pub restarts: u32,
    /// Bytes that the command wrote to standard output and error before that.
    pub written_before: [u64; 2],
    /// The command.
    pub command: Command,
}

/// A folder of the host outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its 9p tag.
    pub tag: String,
    /// Where it is inside.
    pub path: PathBuf,
    /// Where it is outside.
    pub source: PathBuf,
    /// Whether it is not writable inside.
    pub read_only: bool,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The file to execute.
    pub file: PathBuf,
    /// Its arguments, from `argv[0]` on.
    pub arguments: Vec<String>,
    /// Its environment.
    pub environment: Vec<(String, String)>,
    /// Its working directory.
    pub folder: PathBuf,
    /// Which of its streams are terminals.
    pub terminals: Terminals,
}

/// Which of the three standard streams are terminals outside, and so inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminals {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Whether the terminal inside echoes and edits lines, because the one outside is raw.
    pub cooked: bool,
    /// Rows and columns, if one of them is a terminal.
    pub size: Option<(u16, u16)>,
}

impl Terminals {
    /// True if any of the streams is a terminal.
    pub fn any(&self) -> bool {
        self.stdin || self.stdout || self.stderr
    }
}
