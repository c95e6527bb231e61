//! What a run tested: the harness, the VMM and the host, in the same words in every report.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::observe::host::{self, Host};
use crate::run::Options;
use crate::run::evidence::start::{Start, cpus, kernel, unix_now, xxh3};

/// Options of our VMM that make it misbehave on purpose.
const SABOTAGE: [&str; 3] = ["--plant", "--failpoint", "--x-state-version"];
/// Options of the harness that pass an argument to our VMM.
const PASSING: [&str; 2] = ["--vmm-arg=", "--new-vmm-arg="];

/// What cases were run on, how, and when. Host names are not recorded, and `~` stands for the
/// user's home.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The harness's version and revision.
    pub harness: String,
    /// The arguments of the harness; empty if unknown.
    #[serde(default)]
    pub command: Vec<String>,
    /// Cases that ran at a time.
    #[serde(default)]
    pub jobs: Option<usize>,
    /// The VMM.
    pub vmm: Vmm,
    /// The host's kernel.
    pub kernel: String,
    /// Number of CPUs available to the harness.
    pub cpus: usize,
    /// The rest of what is known about the host.
    #[serde(default)]
    pub host: Option<Host>,
    /// The host's load average at the start, and at the end if it was recorded.
    #[serde(default)]
    pub load: Vec<f64>,
    /// Start time, in seconds since 1970.
    pub started_unix: f64,
    /// Duration of the run.
    pub took: Duration,
}

/// A VMM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vmm {
    /// Its name and version, for display.
    pub title: String,
    /// Its version, if it reports one.
    pub version: Option<String>,
    /// Its git revision, if it reports one.
    #[serde(default)]
    pub revision: Option<String>,
    /// Its kind.
    pub backend: String,
    /// The file.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The XXH3-64 of its executable.
    #[serde(default)]
    pub xxh3: Option<String>,
    /// The build that updates go to, if it is another one, and the XXH3-64 of its executable.
    #[serde(default)]
    pub updated_to: Option<(PathBuf, Option<String>)>,
    /// The options that selected it.
    #[serde(default)]
    pub options: String,
}

impl Run {
    /// Creates a run that starts now, `jobs` cases at a time.
    pub fn now(options: &Options, jobs: usize) -> Self {
        let backend = &*options.backend;
        let vmm = Vmm {
            title: backend.title(),
            version: backend.version().map(str::to_owned),
            revision: backend.revision().map(str::to_owned),
            backend: backend.name().to_owned(),
            path: Some(without_home(backend.binary())),
            xxh3: xxh3(backend),
            updated_to: backend.next(0).map(|to: &dyn Backend| (to.binary().to_owned(), xxh3(to))),
            options: options.vmm_option.clone(),
        };
        let words = std::env::args_os().skip(1);
        Self {
            harness: crate::VERSION.to_owned(),
            command: words.map(|word| word.to_string_lossy().into_owned()).collect(),
            jobs: Some(jobs.max(1)),
            kernel: kernel(),
            cpus: cpus(),
            host: Some(host::this()),
            load: host::load().into_iter().collect(),
            started_unix: unix_now(),
            took: Duration::ZERO,
            vmm,
        }
        .private()
    }

    /// Records that it has ended, after this time.
    pub fn end(&mut self, took: Duration) {
        self.took = took;
        self.load.extend(host::load());
    }

    /// Creates the run of a single case.
    pub fn of(start: &Start, took: Duration) -> Self {
        let updated_to = start.updated_to.clone();
        let vmm = Vmm {
            title: start.title(),
            version: start.vmm_version.clone(),
            revision: start.vmm_revision.clone(),
            backend: start.backend.clone(),
            path: Some(start.vmm.clone()),
            xxh3: start.vmm_xxh3.clone(),
            updated_to: updated_to.map(|path| (path, start.updated_to_xxh3.clone())),
            options: start.vmm_option.clone(),
        };
        Self {
            harness: start.harness.clone(),
            command: Vec::new(),
            jobs: None,
            kernel: start.kernel.clone(),
            cpus: start.cpus,
            host: start.host.clone(),
            load: start.load.into_iter().collect(),
            started_unix: start.started_unix,
            took,
            vmm,
        }
        .private()
    }

    /// Replaces the user's home.
    fn private(mut self) -> Self {
        let text = |text: &String| without_home(Path::new(text)).to_string_lossy().into_owned();
        self.command = self.command.iter().map(text).collect();
        self.vmm.path = self.vmm.path.as_deref().map(without_home);
        self.vmm.updated_to = self.vmm.updated_to.map(|(path, hash)| (without_home(&path), hash));
        self.vmm.options = text(&self.vmm.options);
        self
    }

    /// True if both tested the same: harness, VMM, and host but for its load.
    pub fn is_alike(&self, other: &Self) -> bool {
        let what = |run: &Self| Self {
            load: Vec::new(),
            started_unix: 0.0,
            took: Duration::ZERO,
            ..run.clone()
        };
        what(self) == what(other)
    }

    /// Returns the options that made the VMM misbehave on purpose.
    pub fn planted(&self) -> Vec<String> {
        let words = shlex::split(&self.vmm.options).unwrap_or_default();
        let mut planted = Vec::new();
        let mut words = words.iter().peekable();
        let passed = |word: &String| {
            PASSING.iter().find_map(|option| word.strip_prefix(option)).map(str::to_owned)
        };
        while let Some(word) = words.next() {
            match passed(word) {
                None if word == "--fault" => {
                    planted.push(format!("--fault {}", words.next().map_or("", String::as_str)))
                }
                Some(argument) if SABOTAGE.iter().any(|option| argument.starts_with(option)) => {
                    // Its value may be an argument of its own.
                    let value = words.peek().and_then(|word| passed(word));
                    let value = value.filter(|_| !argument.contains('='));
                    planted.push([Some(argument), value].map(Option::unwrap_or_default).join(" "));
                }
                _ => {}
            }
        }
        planted.iter().map(|words| words.trim_end().to_owned()).collect()
    }

    /// Returns the facts about it, by name.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let vmm = &self.vmm;
        let command = ["cpr-harness"].into_iter().chain(self.command.iter().map(String::as_str));
        let command = shlex::try_join(command).ok().filter(|_| !self.command.is_empty());
        let path = |path: &PathBuf| path.display().to_string();
        let updated_to = vmm.updated_to.as_ref().map(|(to, hash)| match hash {
            Some(hash) => format!("{} (XXH3 {hash})", to.display()),
            None => to.display().to_string(),
        });
        let planted = self.planted().join(", ");
        let host = self.host.clone().unwrap_or_default();
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let facts = [
            ("harness", some(&self.harness)),
            ("command", command),
            ("jobs", self.jobs.map(|jobs| jobs.to_string())),
            ("vmm", some(&vmm.title)),
            ("vmm-revision", vmm.revision.clone()),
            ("vmm-file", vmm.path.as_ref().map(path)),
            ("vmm-xxh3", vmm.xxh3.clone()),
            ("vmm-options", some(vmm.options.trim())),
            ("updated-to", updated_to),
            ("planted", some(&planted)),
            ("kernel", some(&self.kernel)),
            ("cpu", some(&host.cpu)),
            ("cpus", (self.cpus > 0).then(|| self.cpus.to_string())),
            ("memory", (host.memory_kib > 0).then(|| gib(host.memory_kib))),
            ("guest-kernel-mode", self.host.as_ref().map(|host| host.kernel_mode.to_string())),
            ("load", load(&self.load)),
        ];
        facts.into_iter().filter_map(|(name, fact)| Some((name, fact?))).collect()
    }
}

fn gib(kib: u64) -> String {
    format!("{:.1} GiB", kib as f64 / f64::from(1 << 20))
}

fn load(load: &[f64]) -> Option<String> {
    match load {
        [] => None,
        [begin] => Some(format!("{begin:.2} at the start")),
        [begin, .., end] => Some(format!("{begin:.2} at the start, {end:.2} at the end")),
    }
}

/// Returns `path` with `~` instead of the user's home, wherever it is in it.
fn without_home(path: &Path) -> PathBuf {
    let home = std::env::var("HOME").unwrap_or_default();
    replaced(path, home.trim_end_matches('/'))
}

fn replaced(path: &Path, home: &str) -> PathBuf {
    match path.to_str() {
        Some(text) if !home.is_empty() => text.replace(&format!("{home}/"), "~/").into(),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn run(options: &str) -> Run {
        let vmm = Vmm { options: options.into(), ..Vmm::default() };
        Run { vmm, ..Run::default() }
    }

    #[rstest]
    #[case("", &[])]
    #[case(" --vmm ./old --accel tcg", &[])]
    #[case(" --vmm-arg=--log --vmm-arg=debug", &[])]
    #[case(" --vmm-arg=--plant=one-shot-twice", &["--plant=one-shot-twice"])]
    #[case(" --new-vmm-arg=--plant '--new-vmm-arg=lose-3'", &["--plant lose-3"])]
    #[case(" --backend mock --fault leak-fd", &["--fault leak-fd"])]
    #[case(" --vmm-arg=--failpoint=save=off --vmm-arg=x", &["--failpoint=save=off"])]
    fn planted_bugs_are_recognized(#[case] options: &str, #[case] planted: &[&str]) {
        assert_eq!(run(options).planted(), planted);
    }

    #[test]
    fn facts_name_everything_that_was_tested() {
        let vmm = Vmm {
            title: "cpr-vmm 0.1.0".into(),
            version: Some("0.1.0".into()),
            revision: Some("00c4a32636bd".into()),
            backend: "cpr-vmm".into(),
            path: Some("~/cpr-vmm".into()),
            xxh3: Some("00000000000000aa".into()),
            updated_to: Some(("/new".into(), Some("00000000000000bb".into()))),
            options: " --vmm-arg=--plant=x".into(),
        };
        let host = Host {
            cpu: "Some CPU".into(),
            memory_kib: 3 << 19,
            kernel_mode: host::KernelMode::Emulated,
        };
        let run = Run {
            harness: "0.1.0 (00c4a32636bd)".into(),
            command: vec!["run".into(), "--filter".into(), "a b".into()],
            jobs: Some(2),
            vmm,
            kernel: "6.1.0".into(),
            cpus: 8,
            host: Some(host),
            load: vec![0.5, 1.25],
            started_unix: 0.0,
            took: Duration::ZERO,
        };
        let facts = run.facts();
        let facts: Vec<_> = facts.iter().map(|(name, fact)| format!("{name}: {fact}")).collect();
        insta::assert_snapshot!(facts.join("\n"), @r"
        harness: 0.1.0 (00c4a32636bd)
        command: cpr-harness run --filter 'a b'
        jobs: 2
        vmm: cpr-vmm 0.1.0
        vmm-revision: 00c4a32636bd
        vmm-file: ~/cpr-vmm
        vmm-xxh3: 00000000000000aa
        vmm-options: --vmm-arg=--plant=x
        updated-to: /new (XXH3 00000000000000bb)
        planted: --plant=x
        kernel: 6.1.0
        cpu: Some CPU
        cpus: 8
        memory: 1.5 GiB
        guest-kernel-mode: emulated
        load: 0.50 at the start, 1.25 at the end
        ");
    }

    #[test]
    fn home_is_not_recorded() {
        let of = |path: &str, home: &str| replaced(Path::new(path), home).display().to_string();
        assert_eq!(of("/home/me/vmm", "/home/me"), "~/vmm");
        assert_eq!(of(" --vmm /home/me/vmm", "/home/me"), " --vmm ~/vmm");
        assert_eq!(of("/home/me2/vmm", "/home/me"), "/home/me2/vmm");
        assert_eq!(of("/vmm", ""), "/vmm");
    }

    #[test]
    fn runs_are_alike_whatever_the_load_and_time() {
        let one = run("");
        assert!(one.is_alike(&Run { load: vec![1.0], started_unix: 5.0, ..one.clone() }));
        assert!(!one.is_alike(&run("--fault x")));
        assert!(!one.is_alike(&Run { cpus: 3, ..one.clone() }));
    }
}
