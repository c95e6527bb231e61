//! Command-line options and their parsing.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, ValueEnum};

use crate::machine::MachineConfig;

/// Maximum value of `--cpus`.
pub const MAX_CPUS: u8 = 64;
const MIB: u64 = 1 << 20;
/// Smallest RAM size: the boot structures and a guest linked at 1 MiB fit.
const MIN_MEMORY: u64 = 4 * MIB;
/// Largest RAM size, to catch mistakes. KVM rejects the memslot if the host cannot address it; the
/// test guests map the first 64 GiB.
const MAX_MEMORY: u64 = 1 << 40;

/// A compact KVM VMM, controlled over QMP, that can replace itself by exec under a running guest.
#[derive(Clone, Debug, Parser)]
#[command(name = "cpr-vmm", version, no_binary_name = true)]
pub struct Config {
    /// Guest image to boot: an ELF file with a PVH entry note.
    #[arg(long, value_name = "FILE", required_unless_present = "incoming")]
    pub kernel: Option<PathBuf>,

    /// Command line passed to the guest.
    #[arg(long, value_name = "STRING", default_value = "", allow_hyphen_values = true)]
    pub cmdline: String,

    /// Initial RAM disk passed to the guest as its first module.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Guest RAM: a size with suffix K, M or G; with share=off the VM cannot be updated.
    #[arg(long, value_name = "SIZE[,share=on|off][,pages=4k|thp|2m]", default_value = "128M")]
    pub memory: MemoryConfig,

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

    /// Load a saved state instead of booting: from a file, or on QMP `migrate-incoming`.
    #[arg(long, value_name = "file:PATH|defer")]
    pub incoming: Option<Incoming>,

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
    /// Returns the machine that the options describe.
    pub fn machine(&self) -> MachineConfig {
        MachineConfig {
            memory: self.memory,
            cpus: self.cpus,
            cmdline: self.cmdline.clone(),
            test_device: self.test_device == Switch::On,
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

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// The value of `--log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The kind of pages that back guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageKind {
    /// 4 KiB pages.
    #[default]
    Small,
    /// Transparent huge pages.
    Thp,
    /// 2 MiB pages from the host's reserved pool.
    Huge2M,
}

impl PageKind {
    /// Returns the number of bytes that a RAM size must be a multiple of.
    pub fn alignment(self) -> u64 {
        match self {
            Self::Small => 4096,
            Self::Thp | Self::Huge2M => 2 * MIB,
        }
    }

    /// Returns the spelling used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "4k",
            Self::Thp => "thp",
            Self::Huge2M => "2m",
        }
    }
}

/// The value of `--memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes of RAM.
    pub size: u64,
    /// RAM is a shared mapping of a memfd, which an update can hand over.
    pub share: bool,
    /// The kind of pages that back it.
    pub pages: PageKind,
}

/// Reasons to reject a `--memory` value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryConfigError {
    /// The size is not a number with a known suffix.
    #[error("invalid size \"{0}\": expected a whole number with suffix K, M or G, such as 256M")]
    Size(String),
    /// The size is too small or too large.
    #[error("invalid RAM size of {0} bytes: must be 4M to 1024G")]
    Range(u64),
    /// The size is not a multiple of the page size.
    #[error(
        "invalid RAM size of {size} bytes: must be a multiple of {alignment} bytes (pages={pages})"
    )]
    Alignment {
        /// The requested size in bytes.
        size: u64,
        /// The required alignment in bytes.
        alignment: u64,
        /// The requested kind of pages.
        pages: &'static str,
    },
    /// An option that does not exist.
    #[error("unknown option \"{0}\": known are share=on|off and pages=4k|thp|2m")]
    Option(String),
    /// Huge pages were requested for a private mapping.
    #[error("pages={0} needs share=on")]
    PrivateHuge(&'static str),
}

impl FromStr for MemoryConfig {
    type Err = MemoryConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let size = parse_size(parts.next().unwrap_or_default())?;
        let mut config = Self { size, share: true, pages: PageKind::Small };
        for option in parts {
            match option {
                "share=on" => config.share = true,
                "share=off" => config.share = false,
                "pages=4k" => config.pages = PageKind::Small,
                "pages=thp" => config.pages = PageKind::Thp,
                "pages=2m" => config.pages = PageKind::Huge2M,
                other => return Err(MemoryConfigError::Option(other.to_owned())),
            }
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&size) {
            return Err(MemoryConfigError::Range(size));
        }
        let alignment = config.pages.alignment();
        if !size.is_multiple_of(alignment) {
            let pages = config.pages.name();
            return Err(MemoryConfigError::Alignment { size, alignment, pages });
        }
        if !config.share && config.pages != PageKind::Small {
            return Err(MemoryConfigError::PrivateHuge(config.pages.name()));
        }
        Ok(config)
    }
}

fn parse_size(text: &str) -> Result<u64, MemoryConfigError> {
    let error = || MemoryConfigError::Size(text.to_owned());
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    let number: u64 = digits.parse().map_err(|_| error())?;
    number.checked_mul(1 << shift).ok_or_else(error)
}

/// An address of the form `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixPath(pub PathBuf);

/// An address could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid address \"{given}\": expected {expected}")]
pub struct AddressError {
    given: String,
    expected: &'static str,
}

impl FromStr for UnixPath {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err(AddressError { given: text.to_owned(), expected: "unix:PATH" }),
        }
    }
}

/// The value of `--serial`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialConfig {
    /// Output is discarded; there is no input.
    Null,
    /// The VMM's own stdin and stdout.
    Stdio,
    /// Output is appended to a file.
    File(PathBuf),
    /// A listening socket; one client at a time.
    Unix(PathBuf),
}

impl FromStr for SerialConfig {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.split_once(':')) {
            ("null", _) => Ok(Self::Null),
            ("stdio", _) => Ok(Self::Stdio),
            (_, Some(("file", path))) if !path.is_empty() => Ok(Self::File(path.into())),
            (_, Some(("unix", path))) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(AddressError {
                given: text.to_owned(),
                expected: "null, stdio, file:PATH or unix:PATH",
            }),
        }
    }
}

/// The value of `--incoming`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Wait for `migrate-incoming`.
    Defer,
    /// Load this file at once.
    File(PathBuf),
}

impl FromStr for Incoming {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.strip_prefix("file:")) {
            ("defer", _) => Ok(Self::Defer),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(AddressError { given: text.to_owned(), expected: "file:PATH or defer" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("64M", 64 << 20, true, PageKind::Small)]
    #[case("1g", 1 << 30, true, PageKind::Small)]
    #[case("8192K,share=off", 8 << 20, false, PageKind::Small)]
    #[case("4194304,pages=thp,share=on", 4 << 20, true, PageKind::Thp)]
    #[case("2G,pages=2m", 2 << 30, true, PageKind::Huge2M)]
    fn parses_memory(
        #[case] text: &str,
        #[case] size: u64,
        #[case] share: bool,
        #[case] pages: PageKind,
    ) {
        assert_eq!(text.parse(), Ok(MemoryConfig { size, share, pages }));
    }

    #[rstest]
    #[case("")]
    #[case("M")]
    #[case("-1M")]
    #[case("+64M")]
    #[case("64T")]
    #[case("1M")]
    #[case("2000000G")]
    #[case("99999999999999999999G")]
    #[case("18446744073709551615G")]
    #[case("5000000")]
    #[case("65M,pages=2m")]
    #[case("64M,share=maybe")]
    #[case("64M,share=off,pages=thp")]
    fn rejects_invalid_memory(#[case] text: &str) {
        let error = text.parse::<MemoryConfig>().unwrap_err();
        insta::assert_snapshot!(
            format!("memory_refused_{}", text.replace(['=', ',', '+'], "_")),
            error
        );
    }

    #[rstest]
    #[case("null", SerialConfig::Null)]
    #[case("stdio", SerialConfig::Stdio)]
    #[case("file:/a:b", SerialConfig::File("/a:b".into()))]
    #[case("unix:s", SerialConfig::Unix("s".into()))]
    fn parses_serial(#[case] text: &str, #[case] expected: SerialConfig) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("tcp::1")]
    #[case("file:")]
    #[case("unix:")]
    #[case("")]
    fn rejects_invalid_serial(#[case] text: &str) {
        assert!(text.parse::<SerialConfig>().is_err());
    }
}
