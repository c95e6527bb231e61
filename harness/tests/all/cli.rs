//! Tests of the command line: its output and its exit codes.

use std::path::Path;

use assert_cmd::Command;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;

use crate::program::not_for_github;

const GOOD: &str = r#"
summary = "updated twice"
steps = ["boot", { migrate = { times = "${times}" } }, "quit"]

[matrix]
times = [1, 2]
"#;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cpr-harness"))
}

/// Creates a folder with the scenario `theme/twice`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("scenarios/theme")).unwrap();
    std::fs::write(folder.path().join("scenarios/theme/twice.toml"), GOOD).unwrap();
    folder
}

fn harness(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.current_dir(folder).args(args);
    not_for_github(&mut command);
    command
}

fn mock<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--backend", "mock"], args].concat()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn passing_run_leaves_evidence_and_exits_with_0() {
    let folder = folder();
    let done = harness(folder.path(), &mock(&["--jobs", "2"])).assert().code(0);
    let told = text(&done.get_output().stdout);
    assert!(told.starts_with("2 cases from scenarios\n"), "{told}");
    assert!(told.contains("2 ran, 2 passed, 0 failed, 0 ignored"), "{told}");
    assert!(told.contains("pass    theme/twice[times=2]   2 updates  blackout max"), "{told}");
    let evidence = folder.path().join("evidence/theme/twice,times=2");
    for file in ["case.toml", "start.json", "timeline.jsonl", "verdict.json", "proc-boot.txt"] {
        assert!(evidence.join(file).exists(), "{file}");
    }
    let timeline = std::fs::read_to_string(evidence.join("timeline.jsonl")).unwrap();
    for source in ["harness", "qmp-sent", "qmp-received"] {
        assert!(timeline.contains(&format!("\"source\":\"{source}\"")), "{source}: {timeline}");
    }
}

#[test]
fn failing_run_can_be_replayed() {
    let folder = folder();
    let args = mock(&["--fault", "leak-fd", "--filter", "times=1"]);
    let done = harness(folder.path(), &args).assert().code(1);
    let told = text(&done.get_output().stdout);
    assert!(told.contains("-> /dev/null is new"), "{told}");
    let replay = told.lines().find_map(|l| l.trim().strip_prefix("replay: ")).unwrap();
    let mut words = replay.split_ascii_whitespace();
    assert_eq!(Path::new(words.next().unwrap()), binary());
    let words: Vec<&str> = words.collect();
    let again = harness(folder.path(), &words).assert().code(1);
    assert!(text(&again.get_output().stdout).contains("-> /dev/null is new"));
}

#[test]
fn closed_stdout_is_not_an_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut list = std::process::Command::new(binary());
    let listed = list.current_dir(folder().path()).arg("guests").stdout(writer).output().unwrap();
    assert_eq!((listed.status.code(), text(&listed.stderr)), (Some(0), String::new()));
}

#[test]
fn kept_vm_stays_up() {
    let folder = folder();
    let args = mock(&["--fault", "leak-fd", "--filter", "times=1", "--keep"]);
    let done = harness(folder.path(), &args).assert().code(1);
    let told = text(&done.get_output().stdout);
    let kept = told.lines().find_map(|l| l.trim().strip_prefix("kept: PID ")).unwrap();
    let (pid, socket) = kept.split_once(", QMP socket ").unwrap();
    let pid: i32 = pid.parse().unwrap();
    let answers = std::os::unix::net::UnixStream::connect(socket);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    std::fs::remove_dir_all(Path::new(socket).parent().unwrap()).unwrap();
    answers.unwrap();
}

#[rstest]
fn terminated_harness_leaves_nothing_behind(
    #[values(Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP)] signal: Signal,
) {
    let folder = folder();
    let evidence = folder.path().join("evidence/theme/twice,times=1/start.json");
    std::fs::create_dir(folder.path().join("tmp")).unwrap();
    let mut run = std::process::Command::new(binary())
        .current_dir(folder.path())
        .args(mock(&["--fault", "hang", "--filter", "times=1"]))
        .env("TMPDIR", folder.path().join("tmp"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let limit = cpr_harness::observe::poll::Deadline::after(std::time::Duration::from_secs(30));
    let vmm = cpr_harness::observe::poll::until(limit, || {
        let children = cpr_harness::observe::process::children(run.id() as i32).ok()?;
        evidence.exists().then_some(())?;
        children.first().map(|child| child.pid)
    });
    kill(Pid::from_raw(run.id() as i32), signal).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(128 + signal as i32));
    let gone = cpr_harness::observe::poll::until(limit, || {
        let stat = cpr_harness::observe::process::Stat::read(vmm?);
        (!stat.is_ok_and(|stat| stat.is_alive())).then_some(())
    });
    assert_eq!(gone, Some(()));
    assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
}

#[rstest]
#[case(&["--filter", "*=1]"], &["theme/twice[times=1]"])]
#[case(&["--filter", "!times=1"], &["theme/twice[times=2]"])]
#[case(&["--skip", "times=1"], &["theme/twice[times=2]"])]
#[case(&["--exact", "theme/twice[times=2]"], &["theme/twice[times=2]"])]
#[case(&[], &["theme/twice[times=1]", "theme/twice[times=2]"])]
fn cases_are_selected_by_name(#[case] options: &[&str], #[case] expected: &[&str]) {
    let folder = folder();
    let done = harness(folder.path(), &[&["list", "--json"], options].concat()).assert().code(0);
    let list: serde_json::Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
    let names: Vec<&str> =
        list.as_array().unwrap().iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(names, expected);
    assert_eq!(list[0]["summary"], "updated twice");
}

#[test]
fn embedded_scenarios_are_listed_beside_a_folder() {
    let folder = folder();
    let done = harness(folder.path(), &["list", "--embedded"]).assert().code(0);
    assert!(text(&done.get_output().stdout).contains("update/running[cpus=1,pages=4k]: "));
}

#[test]
fn quiet_run_prints_the_summary_and_the_slowest() {
    let folder = folder();
    let done = harness(folder.path(), &mock(&["--quiet", "--slowest", "1"])).assert().code(0);
    let told = text(&done.get_output().stdout);
    assert!(!told.contains("pass  ") && told.contains("2 ran, 2 passed"), "{told}");
    assert_eq!(told.matches(" s  theme/twice[times=").count(), 1, "{told}");
}

#[test]
fn fail_fast_ends_the_run_with_the_first_failure() {
    let folder = folder();
    let failing = ["--fault", "leak-fd", "--jobs", "1"];
    for (options, ran) in [(&[][..], "2 ran"), (&["--fail-fast"], "1 ran")] {
        let args = mock(&[&failing, options].concat());
        let done = harness(folder.path(), &args).assert().code(1);
        let told = text(&done.get_output().stdout);
        assert!(told.contains(ran), "{options:?}: {told}");
    }
}

#[test]
fn usage_errors_exit_with_2() {
    let folder = folder();
    let cases: &[(&[&str], &str)] = &[
        (&["run", "--no-such-option"], "--no-such-option"),
        (&["run", "--filter", "no such case"], "no case in scenarios matches"),
        (&["run", "--filter", "theme/twise"], "did you mean theme/twice[times=1]?"),
        (&["run", "--exact", "theme/twice"], "did you mean theme/twice[times=1]?"),
        (&["run", "--filter", "twice", "--skip", "twice"], "no case in scenarios is left"),
        (&["run", "--skip", "!twice"], "it excludes by itself: write `twice`"),
        (&["run", "--jobs", "0"], "invalid value '0' for '--jobs <N>'"),
        (
            &["run", "--evidence", "/proc/nowhere"],
            "cannot write evidence to /proc/nowhere: No such",
        ),
        (
            &["soak", "--evidence", "/proc/nowhere"],
            "cannot write evidence to /proc/nowhere: No such",
        ),
        (&["run", "--errors", "nowhere/E.md"], "cannot write nowhere/E.md: No such file"),
        (&["explore", "--steps", "0"], "invalid value '0' for '--steps <N>'"),
        (&["explore", "--steps", "1", "--json", "nowhere/e.json"], "cannot write nowhere/e.json"),
        (&["bench", "--json", "nowhere/b.json"], "cannot write nowhere/b.json: No such file"),
        (&["run", "--backend", "mock", "--vmm-arg=-x"], "the mock takes no argument such as -x"),
        (
            &["conform", "--vmm", "cpr-vmm", "--vmm", "mock", "--vmm-arg=-x"],
            "the mock takes no argument such as -x",
        ),
        (
            &["conform", "--vmm-arg=-x", "--vmm", "mock", "--vmm", "mock"],
            "give --vmm-arg after the --vmm that it is for",
        ),
        (&["run", "--embedded", "scenarios"], "cannot be used with"),
        (&["run", "no-such-file.toml"], "cannot read scenario no-such-file.toml: No such file"),
        (&["run", "--vmm", "no-such-vmm"], "cannot find the VMM no-such-vmm: No such file"),
        (&["replay", "."], ". is not an evidence folder: case.toml is missing"),
    ];
    for (args, why) in cases {
        let done = harness(folder.path(), args).assert().code(2);
        let told = text(&done.get_output().stderr);
        assert!(told.contains(why), "{args:?}: {told}");
    }
}

#[rstest]
#[case(&["list"])]
#[case(&["run", "--backend", "mock", "--filter", "twice"])]
#[case(&["run", "--backend", "mock", "scenarios/theme"])]
fn errors_of_all_scenario_files_are_shown_before_anything_runs(#[case] args: &[&str]) {
    let folder = folder();
    let theme = folder.path().join("scenarios/theme");
    std::fs::write(theme.join("bad.toml"), "summary = \"\"\nstep = []\n").unwrap();
    let worse = "summary = \"\"\nsteps = [\"boot\", \"migrate\"]\n";
    std::fs::write(theme.join("worse.toml"), worse).unwrap();
    let done = harness(folder.path(), args).assert().code(2).stdout("");
    insta::assert_snapshot!("scenario_errors", text(&done.get_output().stderr));
    assert!(!folder.path().join("evidence").exists());
}

#[test]
fn environment_error_exits_with_3() {
    let folder = folder();
    // A file, so that no case can write evidence there.
    let blocked = |path: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    };
    blocked("evidence/theme");
    blocked("evidence/conform");
    let done = harness(folder.path(), &mock(&[])).assert().code(3);
    let told = text(&done.get_output().stdout);
    assert!(told.contains("BROKEN  theme/twice[times=1]  cannot create "), "{told}");
    assert!(told.contains("0 ran, 0 passed, 0 failed, 0 ignored, 2 could not be run"), "{told}");
    // Nor is a table written that would list these cases as not compared.
    let args = ["conform", "--vmm", "mock", "--vmm", "mock", "--write", "T.md"];
    let done = harness(folder.path(), &args).assert();
    let told = text(&done.get_output().stdout);
    assert!(told.contains("T.md was not written: some cases could not be run"), "{told}");
    assert!(!folder.path().join("T.md").exists());
}

/// The harness may run under `nohup`, in a background job, or below a program that blocks signals.
#[test]
fn vmm_does_not_inherit_signal_settings() {
    let settings = |command: &mut std::process::Command| {
        let folder = folder();
        let done = command
            .current_dir(folder.path())
            .args(mock(&["--filter", "times=1"]))
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(done.success(), "{done}");
        let seen = folder.path().join("evidence/theme/twice,times=1/proc-boot.txt");
        let seen = std::fs::read_to_string(seen).unwrap();
        let of_signals =
            |line: &&str| line.contains("status.SigBlk") || line.contains("status.SigIgn");
        seen.lines().filter(of_signals).map(str::to_owned).collect::<Vec<String>>()
    };
    let plain = settings(&mut std::process::Command::new(binary()));
    assert_eq!(plain.len(), 2, "{plain:?}");
    let mut ignoring = std::process::Command::new(binary());
    // SAFETY: these calls are async-signal-safe, and the closure does nothing else.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut ignoring, || {
            for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGCHLD, libc::SIGUSR1]
            {
                libc::signal(number, libc::SIG_IGN);
            }
            Ok(nix::sys::signal::SigSet::all().thread_set_mask()?)
        })
    };
    assert_eq!(settings(&mut ignoring), plain);
}

/// A harness that was started with `nohup` must ignore SIGHUP.
#[test]
fn ignored_signal_does_not_end_the_harness() {
    let folder = folder();
    let evidence = folder.path().join("evidence/theme/twice,times=1/start.json");
    let mut command = std::process::Command::new(binary());
    command
        .current_dir(folder.path())
        .args(mock(&["--fault", "hang", "--filter", "times=1"]))
        .stdout(std::process::Stdio::null());
    // SAFETY: it is async-signal-safe, and the closure does nothing else.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        })
    };
    let mut run = command.spawn().unwrap();
    let limit = cpr_harness::observe::poll::Deadline::after(std::time::Duration::from_secs(30));
    let runs = cpr_harness::observe::poll::until(limit, || evidence.exists().then_some(()));
    assert_eq!(runs, Some(()), "no case has begun");
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        kill(Pid::from_raw(run.id() as i32), signal).unwrap();
    }
    // The kernel delivers the lower number first, so SIGHUP would have ended it.
    assert_eq!(run.wait().unwrap().code(), Some(128 + Signal::SIGTERM as i32));
}

#[test]
fn run_with_every_case_ignored_exits_with_3() {
    let folder = folder();
    let path = folder.path().join("scenarios/theme/twice.toml");
    std::fs::write(&path, GOOD.replace("times = \"", "deadline-ms = 9000, times = \"")).unwrap();
    let done = harness(folder.path(), &mock(&["--json", "record.json"])).assert().code(3);
    let told = text(&done.get_output().stdout);
    assert!(told.contains("0 ran, 0 passed, 0 failed, 2 ignored"), "{told}");
    assert!(told.contains("\nno case ran: all 2 were ignored\n"), "{told}");
    // A merged report of such a run gives the same result.
    let again = harness(folder.path(), &["report", "merge", "record.json"]).assert().code(3);
    let told = text(&again.get_output().stdout);
    assert!(told.contains("\nno case ran: all 2 were ignored\n"), "{told}");
}

/// A comparison or a catalogue in which nothing ran must not look like a success.
#[test]
fn comparing_or_planting_nothing_is_not_success() {
    let folder = folder();
    let path = folder.path().join("scenarios/theme/twice.toml");
    std::fs::write(&path, GOOD.replace("times = \"", "deadline-ms = 9000, times = \"")).unwrap();
    let args = ["conform", "--vmm", "mock", "--vmm", "mock"];
    let done = harness(folder.path(), &args).assert().code(3);
    let told = text(&done.get_output().stdout);
    assert!(told.ends_with("no case was compared: there is no result\n"), "{told}");
    let done = harness(folder.path(), &["catalogue", "--filter", "no-such-bug"]).assert().code(2);
    let told = text(&done.get_output().stderr);
    assert!(told.contains("no class of bugs matches --filter"), "{told}");
}

#[test]
fn lists_cases_and_guests() {
    let folder = folder();
    harness(folder.path(), &["list"])
        .assert()
        .success()
        .stdout("theme/twice[times=1]: updated twice\ntheme/twice[times=2]: updated twice\n");
    // Outside a working tree it uses the embedded scenarios.
    let elsewhere = tempfile::tempdir().unwrap();
    let listed = harness(elsewhere.path(), &["list"]).assert().success();
    assert!(text(&listed.get_output().stdout).contains("update/running[cpus=1,pages=4k]: "));
    harness(elsewhere.path(), &["guests", "--extract", "elf"]).assert().success();
    for guest in guest_images::GUESTS {
        let elf = elsewhere.path().join(format!("elf/{}.elf", guest.name));
        assert_eq!(std::fs::read(elf).unwrap(), guest.elf);
    }
}

/// The scenarios of this repository pass on the mock, so a failure elsewhere is the VMM's.
#[test]
fn every_scenario_passes_on_the_mock() {
    let elsewhere = tempfile::tempdir().unwrap();
    // Without those that take as long as with a real VMM.
    let only = [
        "update/running",
        "update/stopped",
        "update/t",
        "update/o",
        "failed",
        "refused",
        "channel",
        "lifecycle/no",
        "lifecycle/kill",
    ];
    let filters: Vec<&str> = only.iter().flat_map(|theme| ["--filter", *theme]).collect();
    let args = [mock(&["--jobs", "4"]), filters].concat();
    let done = harness(elsewhere.path(), &args).output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stdout));
}

#[test]
fn vmm_conforms_to_itself() {
    let folder = folder();
    let args = ["conform", "--vmm", "mock", "--vmm", "mock", "--write", "TABLE.md"];
    let done = harness(folder.path(), &args).assert().code(0);
    let told = text(&done.get_output().stdout);
    assert!(told.contains("theme/twice[times=1]: the same\n"), "{told}");
    assert!(told.contains("\n2 the same\n0 pass on both, with known differences"), "{told}");
    let table = std::fs::read_to_string(folder.path().join("TABLE.md")).unwrap();
    assert!(table.contains("| theme/twice | 2 | the same |"), "{table}");
    let alone = harness(folder.path(), &["conform", "--vmm", "mock"]).assert().code(2);
    assert!(text(&alone.get_output().stderr).contains("give --vmm twice"));
}

#[test]
fn missing_qemu_error_says_how_to_install_it() {
    let folder = folder();
    let done = harness(folder.path(), &["run", "--vmm", "qemu"]).env("PATH", "").assert().code(3);
    let told = text(&done.get_output().stderr);
    let why = "no QEMU in ci/.qemu/bin or $PATH: run ci/install-qemu, or give its path";
    assert_eq!(told, format!("cpr-harness: {why}\n"));
}
