//! Cases as tests of nextest, each in a process of its own: every case is in exactly one partition,
//! and no case is ended before its own watchdog has seen to it. Nothing is run here, only listed.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use cpr_harness::scenario::set::Set;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};

/// The target whose tests are the cases.
const TARGET: &str = "scenarios";
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const PARTITIONS: usize = 3;

fn main() -> ExitCode {
    support::main(test)
}

fn test(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let trials = vec![
        Trial::ignorable_test("nextest_has_every_case_in_one_partition", partitions),
        Trial::test("nextest_ends_no_case_before_its_watchdog", patience),
    ];
    Ok(libtest_mimic::run(arguments, trials).exit_code())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The one of ci/install-nextest, or of `$PATH`.
fn nextest() -> Option<PathBuf> {
    let installed = root().join("ci/.nextest/bin/cargo-nextest");
    [installed, "cargo-nextest".into()].into_iter().find(|program| {
        let mut version = Command::new(program);
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    })
}

/// What a command prints that must succeed.
fn told(command: &mut Command) -> Result<String, Failed> {
    let done = command.current_dir(root()).stdin(Stdio::null()).output()?;
    match done.status.success() {
        true => Ok(String::from_utf8(done.stdout)?),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr)).into()),
    }
}

/// The newest binary of [`TARGET`] beside this one.
fn binary() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    let entries = here.parent()?.read_dir().ok()?.flatten().map(|entry| entry.path());
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("scenarios-") && !name.contains('.')
    };
    let mut found: Vec<PathBuf> = entries.filter(is_one).collect();
    found.sort_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok());
    found.into_iter().rfind(|path| {
        // The library's own tests are in a binary of the same name.
        let listed = told(Command::new(path).args(["--list", "--format", "terse"]));
        listed.is_ok_and(|listed| listed.contains("update/running"))
    })
}

fn partitions() -> Result<Completion, Failed> {
    let Some(nextest) = nextest() else {
        return support::ignored("needs cargo-nextest: run ci/install-nextest");
    };
    let Some(binary) = binary() else {
        return support::ignored(
            "the target `scenarios` is not built: run cargo test -p scenarios",
        );
    };
    let folder = tempfile::tempdir()?;
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).map(|()| path)
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut metadata = Command::new(cargo);
    metadata.args(["metadata", "--format-version", "1", "--offline"]);
    // Offline there is only what a build of this platform has downloaded.
    let metadata = told(metadata.args(["--filter-platform", PLATFORM]))?;
    let package = package(&serde_json::from_str(&metadata)?)?;
    let cargo_metadata = write("cargo.json", metadata)?;
    let binaries = write("binaries.json", binaries(&binary, &package).to_string())?;
    let list = |partition: Option<String>| -> Result<BTreeSet<String>, Failed> {
        let mut list = Command::new(&nextest);
        list.args(["nextest", "list", "--message-format", "json", "--run-ignored", "all"]);
        list.arg("--cargo-metadata").arg(&cargo_metadata);
        list.arg("--binaries-metadata").arg(&binaries);
        list.args(partition.iter().flat_map(|partition| ["--partition", partition]));
        Ok(matching(&serde_json::from_str(&told(&mut list)?)?))
    };
    let all = list(None)?;
    let cases: BTreeSet<String> = Set::embedded()?.cases.into_iter().map(|c| c.name).collect();
    assert_eq!(all, cases, "{} lists something else than the cases", binary.display());
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for index in 1..=PARTITIONS {
        for case in list(Some(format!("hash:{index}/{PARTITIONS}")))? {
            *seen.entry(case).or_default() += 1;
        }
    }
    let twice: Vec<&String> = seen.iter().filter(|(_, n)| **n > 1).map(|(case, _)| case).collect();
    assert!(twice.is_empty(), "in several partitions: {twice:?}");
    assert_eq!(seen.into_keys().collect::<BTreeSet<_>>(), cases);
    Ok(Completion::Completed)
}

/// The ID of this package.
fn package(metadata: &Value) -> Result<String, Failed> {
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    let own = packages.find(|package| package["name"] == TARGET);
    let id = own.and_then(|package| package["id"].as_str());
    id.map(str::to_owned).ok_or_else(|| "cargo metadata does not know this package".into())
}

/// What nextest would have learned if it had built the target itself.
fn binaries(binary: &Path, package: &str) -> Value {
    let id = format!("{TARGET}::{TARGET}");
    let here = json!({ "triple": PLATFORM, "target-features": "unknown" });
    let platform = json!({ "platform": here, "libdir": { "status": "unavailable", "reason": "" } });
    json!({
        "rust-build-meta": {
            "target-directory": root().join("target"),
            "base-output-directories": [],
            "non-test-binaries": {},
            "build-script-out-dirs": {},
            "linked-paths": [],
            "platforms": { "host": platform, "targets": [] },
            "target-platforms": [],
            "target-platform": null,
        },
        "rust-binaries": {
            id.as_str(): {
                "binary-id": id,
                "binary-name": TARGET,
                "package-id": package,
                "kind": "test",
                "binary-path": binary,
                "build-platform": "target",
            },
        },
    })
}

/// The tests that would be run.
fn matching(list: &Value) -> BTreeSet<String> {
    let suites = list["rust-suites"].as_object().into_iter().flatten();
    let cases = suites.flat_map(|(_, suite)| suite["testcases"].as_object().into_iter().flatten());
    let matching = cases.filter(|(_, case)| case["filter-match"]["status"] == "matches");
    matching.map(|(name, _)| name.clone()).collect()
}

/// Milliseconds after which nextest ends a test.
fn ends_after(profile: &toml::Value) -> Option<u64> {
    let timeout = profile.get("slow-timeout")?;
    let seconds: u64 = timeout.get("period")?.as_str()?.strip_suffix('s')?.parse().ok()?;
    let periods = u64::try_from(timeout.get("terminate-after")?.as_integer()?).ok()?;
    Some(seconds * periods * 1000)
}

fn patience() -> Result<(), Failed> {
    let config: toml::Value =
        toml::from_str(&std::fs::read_to_string(root().join(".config/nextest.toml"))?)?;
    let profile = &config["profile"]["ci"];
    let rest = ends_after(profile).ok_or("profile ci has no slow-timeout")?;
    let mut overrides = Vec::new();
    for one in profile["overrides"].as_array().into_iter().flatten() {
        let filter = one["filter"].as_str().unwrap_or_default();
        let theme = filter.strip_prefix("test(/^").and_then(|f| f.strip_suffix("\\//)"));
        let theme = theme.ok_or_else(|| format!("{filter} is no filter of a theme"))?;
        overrides.push((format!("{theme}/"), ends_after(one).ok_or("it has no slow-timeout")?));
    }
    for case in Set::embedded()?.cases {
        let own = overrides.iter().find(|(theme, _)| case.name.starts_with(theme));
        let end = own.map_or(rest, |(_, end)| *end);
        let deadline = case.deadline_ms;
        assert!(end > deadline, "{} has {deadline} ms, nextest ends it after {end}", case.name);
    }
    Ok(())
}
