//! Command-line options and their parsing.

mod incoming;
mod peer_address;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
pub use incoming::{
    Incoming, IncomingError, IncomingOption, MainChannel, TransferChannels, main_channel,
};
pub use peer_address::{PeerAddress, PeerAddressError, unix_path};

use crate::address::AddressError;
use crate::devices::DeviceOption;
use crate::devices::serial::SerialConfig;
use crate::logging::LogLevel;
use crate::machine::MachineConfig;
use crate::memory::MemoryOption;
use crate::switch::Switch;

/// Maximum value of `--cpus`.
pub const MAX_CPUS: u8 = 64;
/// A compact KVM VMM, controlled over QMP, that can replace itself by exec under a running guest.
#[derive(Clone, Debug, Parser)]
#[command(name = "cpr-vmm", version, long_version = crate::VERSION, no_binary_name = true)]
pub struct Config {
    /// Guest image to boot: an ELF file with a PVH entry note, or a Linux bzImage.
    #[arg(long, value_name = "FILE", required_unless_present = "incoming")]
    pub kernel: Option<PathBuf>,

    /// Command line passed to the guest.
    #[arg(long, value_name = "STRING", default_value = "", allow_hyphen_values = true)]
    pub cmdline: String,

    /// Initial RAM disk passed to the guest; with PVH, as its first module.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Guest RAM: a size with suffix K, M or G; with share=off the VM cannot be updated. With
    /// file=PATH it is in this file, which is created if missing and kept at exit, for cpr-reboot.
    #[arg(
        long,
        value_name = "SIZE[,share=on|off][,pages=4k|thp|2m][,file=PATH]",
        default_value = "128M"
    )]
    pub memory: MemoryOption,

    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CPUS)))]
    pub cpus: u8,

    /// Socket on which to listen for QMP clients.
    #[arg(long, value_name = "unix:PATH")]
    pub qmp: Option<UnixPath>,

    /// Backend of the first serial port.
    #[arg(long, value_name = "null|stdio|file:PATH|unix:PATH", default_value = "null")]
    pub serial: SerialConfig,

    /// Whether to add the test device and a port (0x501) through which the guest ends the VMM.
    #[arg(long, value_name = "on|off", default_value = "off")]
    pub test_device: Switch,

    /// Add a device behind PCI, in the next free slot; can be repeated.
    #[arg(long, value_name = "virtio-rng[,max-bytes=N,period=MS]")]
    pub device: Vec<DeviceOption>,

    /// Load a guest instead of booting one: from a file (cpr-exec, normal, or cpr-reboot with
    /// --memory SIZE,file=PATH), from the VMM that connects to a socket (normal), or as QMP
    /// `migrate-incoming` says. For cpr-transfer, give the option twice: with the main channel
    /// (unix:PATH or file:PATH), and with the cpr channel, as QEMU's JSON.
    #[arg(long, value_name = "file:PATH|unix:PATH|tcp:ADDRESS:PORT|defer|JSON")]
    pub incoming: Vec<IncomingOption>,

    /// With --incoming file:PATH: path of the guest RAM that a failed update left behind, such as
    /// /proc/PID/fd/N.
    #[arg(long, value_name = "PATH", requires = "incoming")]
    pub incoming_ram: Option<PathBuf>,

    /// Whether state files and memory dumps are written through a symbolic link, if the last
    /// component of their path is one.
    #[arg(long, value_name = "on|off", default_value = "off")]
    pub follow_symlinks: Switch,

    /// Do not start the vCPUs until QMP `cont`.
    #[arg(long)]
    pub paused: bool,

    /// Name of the VM, as reported by `query-name`.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Write the process ID to this file; removed on exit.
    #[arg(long, value_name = "PATH")]
    pub pid_file: Option<PathBuf>,

    /// Log level.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log: LogLevel,

    /// Append the log to this file instead of writing it to stderr.
    #[arg(long, value_name = "PATH")]
    pub log_file: Option<PathBuf>,

    /// Make an update fail at this point (`query-failpoints` lists them); can be repeated.
    #[cfg(feature = "failpoints")]
    #[arg(long, value_name = "POINT=ACTION")]
    pub failpoint: Vec<crate::failpoints::FailPoint>,

    /// Plant this bug; can be repeated.
    #[cfg(feature = "failpoints")]
    #[arg(long, value_name = "NAME", hide = true)]
    pub plant: Vec<crate::failpoints::Plant>,

    /// Pretend to be a VMM that reads this version of the saved state.
    #[cfg(feature = "failpoints")]
    #[arg(long, value_name = "N", hide = true)]
    pub x_state_version: Option<u32>,

    /// When to keep a standby process that continues the guest if the VMM's own process dies:
    /// always, during updates, or never.
    #[arg(long, value_name = "on|update|off", default_value = "update")]
    pub keeper: KeeperPolicy,
}

impl Config {
    /// Parses the arguments, without the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let config = Self::try_parse_from(args)?;
        match Incoming::combine(&config.incoming) {
            Ok(_) => Ok(config),
            Err(error) => Err(Self::command().error(ErrorKind::ArgumentConflict, error)),
        }
    }

    /// Returns where the state of the guest comes from; `None` if it is to be booted.
    pub fn incoming(&self) -> Option<Incoming> {
        // `parse` has rejected everything else.
        Incoming::combine(&self.incoming).ok().flatten()
    }

    /// Returns the machine that the options describe.
    pub fn machine(&self) -> MachineConfig {
        MachineConfig {
            memory: self.memory.ram,
            cpus: self.cpus,
            cmdline: self.cmdline.clone(),
            test_device: self.test_device == Switch::On,
            devices: self.device.clone(),
        }
    }
}

/// The value of `--keeper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeeperPolicy {
    /// From startup to exit.
    On,
    /// From `migrate` until the update is reported complete or failed.
    Update,
    /// Never; updates then take longer.
    Off,
}

/// An address of the form `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixPath(pub PathBuf);

impl FromStr for UnixPath {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err(AddressError { given: text.to_owned(), expected: "unix:PATH" }),
        }
    }
}
