//! `--memory`: how much RAM there is, and of what.

use std::path::PathBuf;
use std::str::FromStr;

const MIB: u64 = 1 << 20;
/// Smallest RAM size: the boot structures and a guest linked at 1 MiB fit.
const MIN_MEMORY: u64 = 4 * MIB;
/// Largest RAM size, to catch mistakes. KVM rejects the memslot if the host cannot address it; the
/// test guests map the first 64 GiB.
const MAX_MEMORY: u64 = 1 << 40;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryOption {
    /// The guest's RAM.
    pub ram: MemoryConfig,
    /// The file that holds it, and outlives the process; `None`: a memfd, or private memory.
    pub file: Option<PathBuf>,
}

/// The guest's RAM: its size, and what backs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes of RAM.
    pub size: u64,
    /// RAM is a shared mapping of a file, which an update can hand over.
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
    #[error("unknown option \"{0}\": known are share=on|off, pages=4k|thp|2m and file=PATH")]
    Option(String),
    /// The path of the file is empty.
    #[error("file= needs a path")]
    NoPath,
    /// The file was requested for a private mapping.
    #[error("file={} needs share=on", .0.display())]
    PrivateFile(PathBuf),
    /// The file was requested with huge pages.
    #[error("file={} needs pages=4k, not pages={pages}", .file.display())]
    HugeFile {
        /// The file.
        file: PathBuf,
        /// The requested kind of pages.
        pages: &'static str,
    },
    /// Huge pages were requested for a private mapping.
    #[error("pages={0} needs share=on")]
    PrivateHuge(&'static str),
}

impl FromStr for MemoryOption {
    type Err = MemoryConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let size = parse_size(parts.next().unwrap_or_default())?;
        let mut config = MemoryConfig { size, share: true, pages: PageKind::Small };
        let mut file = None;
        for option in parts {
            match option {
                "share=on" => config.share = true,
                "share=off" => config.share = false,
                "pages=4k" => config.pages = PageKind::Small,
                "pages=thp" => config.pages = PageKind::Thp,
                "pages=2m" => config.pages = PageKind::Huge2M,
                other => match other.strip_prefix("file=") {
                    Some("") => return Err(MemoryConfigError::NoPath),
                    Some(path) => file = Some(PathBuf::from(path)),
                    None => return Err(MemoryConfigError::Option(other.to_owned())),
                },
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
        match file {
            Some(file) if !config.share => Err(MemoryConfigError::PrivateFile(file)),
            Some(file) if config.pages != PageKind::Small => {
                Err(MemoryConfigError::HugeFile { file, pages: config.pages.name() })
            }
            file => Ok(Self { ram: config, file }),
        }
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
        let ram = MemoryConfig { size, share, pages };
        assert_eq!(text.parse(), Ok(MemoryOption { ram, file: None }));
    }

    #[test]
    fn parses_the_file() {
        let option: MemoryOption = "64M,file=/run/vm/ram=1".parse().unwrap();
        assert_eq!(option.file, Some("/run/vm/ram=1".into()));
        assert!(option.ram.share);
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
    #[case("64M,file=")]
    #[case("64M,file=a,share=off")]
    #[case("64M,file=a,pages=2m")]
    fn rejects_invalid_memory(#[case] text: &str) {
        let error = text.parse::<MemoryOption>().unwrap_err();
        insta::assert_snapshot!(
            format!("memory_refused_{}", text.replace(['=', ',', '+'], "_")),
            error
        );
    }
}
