//! Tests of the options for QEMU, wrappers and known differences. What needs QEMU or KVM is skipped
//! where there is none, unless all tests are required.

use std::fs;
use std::path::Path;

use cpr_harness::backend::qemu;
use cpr_harness::run::requirements;
use rstest::rstest;

use crate::program::harness;

const SCENARIO: &str = r#"
summary = "updated by exec and to another process"
steps = ["boot", { migrate = {} }, { migrate = { mode = "cpr-transfer" } }, "stop", { migrate = {} }, "quit"]
"#;

/// An addition to the scenario that only QEMU can run.
const ONLY_QEMU: &str = r#"
[vm.qemu]
machine = "q35"
args = ["-device", "virtio-rng-pci,id=of-the-scenario"]
"#;

/// Creates a folder with the scenario `theme/updated`, which ends with `more`.
fn folder(more: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("scenarios/theme")).unwrap();
    fs::write(folder.path().join("scenarios/theme/updated.toml"), format!("{SCENARIO}{more}"))
        .unwrap();
    folder
}

/// Returns QEMU's path; none, with the reason printed, if this host lacks it or KVM.
fn qemu() -> Option<String> {
    let path = qemu::find_anywhere().map(|path| path.canonicalize().unwrap().display().to_string());
    let path = path.ok_or_else(|| "needs QEMU: run ci/install-qemu".to_owned());
    match path.and_then(|path| requirements::no_kvm().map_or(Ok(path), Err)) {
        Ok(path) => Some(path),
        Err(why) => {
            assert!(!requirements::all_required(), "{why}");
            eprintln!("ignored: {why}");
            None
        }
    }
}

fn timeline(folder: &Path, evidence: &str) -> String {
    fs::read_to_string(folder.join(evidence).join("theme/updated/timeline.jsonl")).unwrap()
}

/// The lines that start a VMM or set the command of an update.
fn commands(timeline: &str) -> Vec<&str> {
    let starts = |line: &&str| line.contains("\"start ") || line.contains("cpr-exec-command");
    let sent = timeline.lines().filter(|line| !line.contains("-received"));
    sent.filter(starts).collect()
}

#[test]
fn options_that_cannot_be_used_are_errors() {
    let folder = folder("");
    let mut told = Vec::new();
    for args in [
        "run --machine q35",
        "run --qemu-arg -S",
        "run --accel tcg",
        "run --accel hvf",
        "run --machine=",
        "run --backend mock --machine q35",
        "run --backend mock --wrap env",
        "run --wrap '",
        "run --wrap=",
        "run --vmm /no/such/qemu --machine q35",
        "conform --vmm cpr-vmm --vmm mock --qemu-arg -S",
        "run --backend mock --differences /no/such/file",
        "conform --vmm cpr-vmm --vmm mock --differences scenarios/theme/updated.toml",
    ] {
        let (code, text) = harness(folder.path(), &args.split(' ').collect::<Vec<_>>());
        assert_eq!(code, Some(2), "{args}: {text}");
        told.push(format!("{args}\n{text}"));
    }
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn machine_and_arguments_are_in_every_command_line() {
    let Some(qemu) = qemu() else { return };
    let folder = folder(ONLY_QEMU);
    let more = ["--qemu-arg", "-device", "--qemu-arg", "virtio-rng-pci"];
    let args = [&["run", "--vmm", &qemu, "--machine", "q35,hpet=off"], &more[..]].concat();
    let (code, told) = harness(folder.path(), &args);
    assert_eq!(code, Some(0), "{told}");
    // A replay uses the recorded options.
    let (code, told) = harness(folder.path(), &["replay", "evidence/theme/updated"]);
    assert_eq!(code, Some(0), "{told}");
    for evidence in ["evidence", "evidence/theme/replay"] {
        let timeline = timeline(folder.path(), evidence);
        // The boot, the new VMM of the transfer, and two updates by exec.
        assert_eq!(commands(&timeline).len(), 4, "{timeline}");
        for command in commands(&timeline) {
            assert!(command.contains("q35,hpet=off,memory-backend=ram"), "{command}");
            assert!(command.contains("virtio-rng-pci,id=of-the-scenario"), "{command}");
            assert_eq!(command.matches("virtio-rng-pci").count(), 2, "{command}");
        }
    }
}

#[test]
fn qemu_that_does_not_start_is_an_error_with_its_last_words() {
    let Some(qemu) = qemu() else { return };
    let folder = folder("");
    let more = ["--qemu-arg", "-device", "--qemu-arg", "no-such-device"];
    let (code, told) = harness(folder.path(), &[&["run", "--vmm", &qemu], &more[..]].concat());
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("check --machine, --accel, --qemu-arg and --wrap"), "{told}");
    assert!(told.contains("'no-such-device' is not a valid device model name"), "{told}");
    assert!(!folder.path().join("evidence/theme").exists(), "a case ran");
}

#[test]
fn scenario_for_qemu_is_ignored_on_another_vmm() {
    let folder = folder(ONLY_QEMU);
    let (code, told) = harness(folder.path(), &["run", "--backend", "mock"]);
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("the mock takes no options of QEMU"), "{told}");
}

/// `env` executes the VMM in its own process, so each update must execute `env` again; `sh` stays its
/// parent, so an update executes the VMM alone.
#[rstest]
#[case::executes("env WRAPPED=1", 4)]
#[case::stays_the_parent("sh -c '\"$@\"; exit $?' wrapper", 2)]
fn every_vmm_is_started_by_the_wrapper(
    #[case] wrapper: &str,
    #[case] wrapped: usize,
    #[values(false, true)] is_qemu: bool,
) {
    let Some(qemu) = qemu() else { return };
    let folder = folder("");
    let vmm = if is_qemu { &["--vmm", qemu.as_str()][..] } else { &[] };
    let (code, told) = harness(folder.path(), &[&["run", "--wrap", wrapper], vmm].concat());
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("blackouts are not measured"), "{told}");
    let timeline = timeline(folder.path(), "evidence");
    let first = wrapper.split(' ').next().unwrap();
    let is_wrapped = |command: &&str| {
        command.contains(&format!("start {first} "))
            || command.contains(&format!("[\"{first}\""))
            || command.contains(&format!("[\\\"{first}\\\""))
    };
    let commands = commands(&timeline);
    assert_eq!(commands.iter().copied().filter(is_wrapped).count(), wrapped, "{commands:#?}");
}

const DIFFERENCES: &str = r#"
[[difference]]
name = "leaves-one-open"
vmm = "mock"
kind = "verdict"
cases = ["theme/"]
findings = { fds = "/dev/null is new" }
reason = "it is made to"
"#;

#[test]
fn another_file_of_differences_replaces_the_known_ones() {
    let folder = folder("");
    fs::write(folder.path().join("mine.toml"), DIFFERENCES).unwrap();
    let run = ["run", "--backend", "mock", "--fault", "leak-fd"];
    let (code, told) = harness(folder.path(), &run);
    assert_eq!(code, Some(1), "{told}");
    let (code, told) =
        harness(folder.path(), &[&run[..], &["--differences", "mine.toml"]].concat());
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("leaves-one-open"), "{told}");
    // A replay uses the recorded file, unless another is given.
    let replay = ["replay", "evidence/theme/updated"];
    let (code, told) = harness(folder.path(), &replay);
    assert_eq!(code, Some(0), "{told}");
    let (code, told) =
        harness(folder.path(), &[&replay[..], &["--differences", "/dev/null"]].concat());
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("--differences=/dev/null"), "{told}");
}
