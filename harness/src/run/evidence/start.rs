//! Records the circumstances of a case before it runs, and compares those of two runs.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, file_hash};
use crate::observe::host::{self, Host};
use crate::run::Options;
use crate::scenario::Case;

/// The name of the file in the evidence folder.
pub const START: &str = "start.json";

/// The circumstances of a run: what the case ran on, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The case.
    pub case: String,
    /// The guest's seed.
    pub seed: u64,
    /// The start time in seconds since 1970.
    pub started_unix: f64,
    /// The harness's version and revision.
    pub harness: String,
    /// The kind of VMM.
    pub backend: String,
    /// The VMM's binary.
    pub vmm: PathBuf,
    /// The build that the first update goes to, if it is another one.
    #[serde(default)]
    pub updated_to: Option<PathBuf>,
    /// The VMM's version, if known.
    pub vmm_version: Option<String>,
    /// The git revision of the VMM, if known.
    #[serde(default)]
    pub vmm_revision: Option<String>,
    /// The XXH3-64 hash of the VMM's executable, if it can be read.
    #[serde(default)]
    pub vmm_xxh3: Option<String>,
    /// The XXH3-64 hash of the build in `updated_to`.
    #[serde(default)]
    pub updated_to_xxh3: Option<String>,
    /// The command-line options that selected the VMM.
    #[serde(default)]
    pub vmm_option: String,
    /// The host's kernel.
    pub kernel: String,
    /// The number of CPUs available to the harness.
    pub cpus: usize,
    /// The rest of what is known about the host.
    #[serde(default)]
    pub host: Option<Host>,
    /// The host's load average when the case started.
    #[serde(default)]
    pub load: Option<f64>,
}

impl Start {
    /// Records the circumstances of a run of `case` that starts now.
    pub fn now(case: &Case, options: &Options) -> Self {
        Self {
            case: case.name.clone(),
            seed: case.seed,
            started_unix: unix_now(),
            harness: crate::VERSION.to_owned(),
            backend: options.backend.name().to_owned(),
            vmm: options.backend.binary().to_owned(),
            updated_to: options.backend.next(0).map(|build| build.binary().to_owned()),
            vmm_version: options.backend.version().map(str::to_owned),
            vmm_revision: options.backend.revision().map(str::to_owned),
            vmm_xxh3: xxh3(&*options.backend),
            updated_to_xxh3: options.backend.next(0).and_then(xxh3),
            vmm_option: options.vmm_option.clone(),
            kernel: kernel(),
            cpus: cpus(),
            host: Some(host::this()),
            load: host::load(),
        }
    }

    /// Returns the name and version of the VMM for display.
    pub fn title(&self) -> String {
        [Some(self.backend.as_str()), self.vmm_version.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Lists how the circumstances `now` differ from these, one line each. Builds are compared by
    /// the hash of their file.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let unknown = || "unknown".to_owned();
        let version = |start: &Self| start.vmm_version.clone().unwrap_or_else(unknown);
        let build = |xxh3: &Option<String>| xxh3.as_ref().map(|xxh3| format!("xxh3 {xxh3}"));
        let vmm_build = |start: &Self| build(&start.vmm_xxh3).unwrap_or_else(unknown);
        let next_build = |start: &Self| build(&start.updated_to_xxh3).unwrap_or("none".into());
        let all = [
            ("harness", self.harness.clone(), now.harness.clone()),
            ("backend", self.backend.clone(), now.backend.clone()),
            ("VMM version", version(self), version(now)),
            ("VMM build", vmm_build(self), vmm_build(now)),
            ("build updated to", next_build(self), next_build(now)),
            ("VMM options", option(&self.vmm_option), option(&now.vmm_option)),
            ("kernel", self.kernel.clone(), now.kernel.clone()),
            ("CPUs", self.cpus.to_string(), now.cpus.to_string()),
        ];
        let differs = all.into_iter().filter(|(_, was, is)| was != is);
        differs.map(|(what, was, is)| format!("{what}: was {was}, is {is}")).collect()
    }
}

/// Returns the hash of a build's executable, if it can be read.
pub fn xxh3(build: &dyn Backend) -> Option<String> {
    file_hash::of(build.executable()).ok()
}

/// Formats command-line options for comparison, whatever their quoting.
fn option(text: &str) -> String {
    match shlex::split(text) {
        Some(words) if words.is_empty() => "none".to_owned(),
        Some(words) => words.join(" "),
        None => text.trim().to_owned(),
    }
}

/// Returns the current time in seconds since 1970.
pub fn unix_now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// Returns the release of the host's kernel.
pub fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim_end().to_owned()
}

/// Returns the number of CPUs that this process may use; 0 if unknown.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Start {
        Start {
            case: "update/running".into(),
            seed: 7,
            started_unix: 1.0,
            harness: "0.1.0".into(),
            backend: "cpr-vmm".into(),
            vmm: "/somewhere/cpr-harness".into(),
            updated_to: None,
            vmm_version: Some("0.1.0".into()),
            vmm_revision: None,
            vmm_xxh3: Some("00000000000000aa".into()),
            updated_to_xxh3: None,
            vmm_option: String::new(),
            kernel: "6.1.0".into(),
            cpus: 2,
            host: None,
            load: None,
        }
    }

    #[test]
    fn ignores_time_and_path() {
        let later = Start {
            started_unix: 2.0,
            vmm: "/elsewhere".into(),
            host: Some(Host::default()),
            load: Some(7.0),
            ..start()
        };
        assert_eq!(start().differences(&later), [""; 0]);
    }

    #[test]
    fn lists_every_difference() {
        let now = Start {
            harness: "0.2.0".into(),
            backend: "qemu".into(),
            vmm_version: None,
            vmm_xxh3: Some("00000000000000bb".into()),
            updated_to_xxh3: Some("00000000000000cc".into()),
            vmm_option: " --vmm qemu".into(),
            kernel: "6.2.0".into(),
            cpus: 8,
            ..start()
        };
        insta::assert_snapshot!(start().differences(&now).join("\n"), @r"
        harness: was 0.1.0, is 0.2.0
        backend: was cpr-vmm, is qemu
        VMM version: was 0.1.0, is unknown
        VMM build: was xxh3 00000000000000aa, is xxh3 00000000000000bb
        build updated to: was none, is xxh3 00000000000000cc
        VMM options: was none, is --vmm qemu
        kernel: was 6.1.0, is 6.2.0
        CPUs: was 2, is 8
        ");
    }
}
