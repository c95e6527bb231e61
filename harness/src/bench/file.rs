//! The results file, written by `bench --json` and read by `bench compare`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Measured, Metric};
use crate::run::evidence::start::{cpus, kernel};

/// Version of the file format; incremented on incompatible changes.
pub const FORMAT: u32 = 1;

/// All measurements, and the host they were taken on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the harness.
    pub harness: String,
    /// The host's kernel.
    pub kernel: String,
    /// Number of CPUs of the host.
    pub cpus: usize,
    /// The measurements, by cell.
    pub measured: Vec<Measured>,
}

/// Why results cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// An I/O error.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is not a results file.
    #[error("{path} was not written by `bench --json`: {source}")]
    Other {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// It has another format.
    #[error(
        "{path} has format {found}, but this harness reads format {FORMAT}: measure again with this harness"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// A boot in it has no times.
    #[error("{0} was not written by `bench --json`: a boot has no times")]
    NoTimes(PathBuf),
    /// It has no measurements.
    #[error("{0} contains no times: every cell was skipped, or nothing could be measured")]
    Empty(PathBuf),
}

impl Results {
    /// Creates the results of this harness on this host.
    pub fn here(measured: Vec<Measured>) -> Self {
        Self {
            format: FORMAT,
            harness: env!("CARGO_PKG_VERSION").into(),
            kernel: kernel(),
            cpus: cpus(),
            measured,
        }
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let io = |source| FileError::Io { what: "write", path: path.to_owned(), source };
        let text = serde_json::to_string_pretty(self).map_err(|e| io(e.into()))?;
        fs::write(path, text + "\n").map_err(io)
    }

    /// Reads the file; a file without times is an error.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let io = |source| FileError::Io { what: "read", path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(io)?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        let other = |source| FileError::Other { path: path.to_owned(), source };
        let value: serde_json::Value = serde_json::from_str(text).map_err(other)?;
        // Checked first: another format may contain anything.
        if let Some(found) = value.get("format").and_then(serde_json::Value::as_u64)
            && found != u64::from(FORMAT)
        {
            return Err(FileError::Format { path: path.to_owned(), found });
        }
        let results: Self = serde_json::from_value(value).map_err(other)?;
        let all = results.measured.iter().flat_map(|measured| &measured.of);
        if all.flat_map(|samples| samples.times_ms.values()).flatten().any(Vec::is_empty) {
            return Err(FileError::NoTimes(path.to_owned()));
        }
        let has_times = |measured: &Measured| {
            measured.of.iter().any(|samples| !samples.times(Metric::Guest).is_empty())
        };
        match results.measured.iter().any(has_times) {
            true => Ok(results),
            false => Err(FileError::Empty(path.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_other_files() {
        let texts = [
            "",
            "[]",
            "{}",
            r#"{"format": 2}"#,
            r#"{"format": 1, "harness": "", "kernel": "", "cpus": 2, "measured": []}"#,
            r#"{"format": 1, "harness": "", "kernel": "", "cpus": 2, "measured": [{"cell":
                {"memory": "64M", "cpus": 1, "pages": "4k"}, "floor": null, "of": [{"vmm": "a",
                "times_ms": {"guest": [[], [1.0]]}, "phases_ms": {}, "troubles": []}]}]}"#,
        ];
        let errors: Vec<String> = texts
            .iter()
            .map(|text| Results::parse(Path::new("x.json"), text).unwrap_err().to_string())
            .collect();
        insta::assert_snapshot!(errors.join("\n"));
    }
}
