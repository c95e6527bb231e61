use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use rstest::rstest;

use super::*;

/// Rehearses a shell script until the rehearsal is over.
fn rehearse(script: &str, timeout: Duration) -> (RehearsalError, Vec<RemainingProcess>) {
    rehearse_words(&["/bin/sh", "-c", script], timeout)
}

fn rehearse_words(words: &[&str], timeout: Duration) -> (RehearsalError, Vec<RemainingProcess>) {
    let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
    let command = ExecCommand::prepare(Some(&words)).unwrap();
    let mut rehearsal = Rehearsal::start(&command, timeout, Vec::new()).unwrap();
    loop {
        if let Some(result) = rehearsal.progress() {
            return (result.unwrap_err(), rehearsal.end());
        }
        let fds = rehearsal.fds();
        let mut fds: Vec<_> =
            fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let left = PollTimeout::try_from(rehearsal.time_left()).unwrap();
        poll(&mut fds, left).unwrap();
    }
}

/// Returns the text of the error without process IDs.
fn shown(error: &RehearsalError) -> String {
    let text = error.to_string();
    let mut parts = text.split("process ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |shown, part| {
        shown + "process PID" + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

#[rstest]
#[case("exits_well", "exit 0", 10_000)]
#[case("exits_badly", "echo no such option >&2; exit 7", 10_000)]
#[case("kills_itself", "kill -SEGV $$", 10_000)]
#[case("hangs", "echo still here >&2; exec sleep 1000", 300)]
#[case("floods_stdout", "exec yes", 300)]
#[case("daemonizes", "setsid sleep 1000 & exit 0", 10_000)]
#[case("answers_garbage", "printf 'AAAA' >&3; exec sleep 1000", 10_000)]
#[case("floods_the_socket", "exec yes >&3", 10_000)]
#[case("answers_bad_cbor", "printf '\\003\\000\\000\\000\\377\\377\\377' >&3", 10_000)]
#[serial_test::serial(children)]
fn refuses_other_programs_and_leaves_nothing(
    #[case] name: &str,
    #[case] script: &str,
    #[case] ms: u64,
) {
    let (error, leftovers) = rehearse(script, Duration::from_millis(ms));
    insta::assert_snapshot!(format!("rehearsal_{name}"), shown(&error));
    assert!(leftovers.iter().all(|left| left.trouble().is_none()), "{leftovers:?}");
    let left: Vec<_> = children().into_iter().filter(is_ours).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Such a process has no environment to recognize it by, most of the time.
#[test]
#[serial_test::serial(children)]
fn daemon_that_executes_all_the_time_is_found_and_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("daemon");
    std::fs::write(&path, "#!/bin/sh\n: >\"$0.runs\"\nexec \"$0\"\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let runs = dir.path().join("daemon.runs");
    let [daemon, runs_too] = [&path, &runs].map(|path| path.display());
    let script = format!("setsid {daemon} & until [ -e {runs_too} ]; do :; done; exit 0");
    for _ in 0..20 {
        let _ = std::fs::remove_file(&runs);
        let (error, leftovers) = rehearse(&script, Duration::from_secs(10));
        assert!(matches!(error, RehearsalError::LeftBehind { .. }), "{error}");
        assert!(leftovers.iter().all(|left| left.trouble().is_none()), "{leftovers:?}");
        let is_daemon = |pid: &Pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            ["sh", "setsid", "daemon"].contains(&name.trim())
        };
        let left: Vec<_> = children().into_iter().filter(is_daemon).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Returns true for processes of a rehearsal, which are shells and sleepers: other tests of this
/// binary have children too.
fn is_ours(pid: &Pid) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    ["sh", "sleep", "yes"].contains(&name.trim())
}

#[test]
#[serial_test::serial(children)]
fn truncates_endless_stderr() {
    let (error, _) = rehearse("exec yes 1>&2", Duration::from_millis(300));
    let error = error.to_string();
    assert!(error.contains("did not answer") && error.len() < 600, "{error}");
}

#[test]
#[serial_test::serial(children)]
fn only_the_child_is_offered_to_the_oom_killer() {
    let script = "until [ $(cat /proc/$$/oom_score_adj) = 1000 ]; do :; done; exit 7";
    for _ in 0..20 {
        let (error, _) = rehearse(script, Duration::from_secs(10));
        assert!(error.to_string().contains("status 7"), "{error}");
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert_ne!(own.trim(), "1000");
    }
}

#[test]
#[serial_test::serial(children)]
fn reports_missing_command() {
    let (error, _) = rehearse_words(&["/nowhere/vmm"], Duration::from_secs(10));
    insta::assert_snapshot!(error, @r#"cannot execute cpr-exec-command "/nowhere/vmm": No such file or directory (os error 2)"#);
}

/// Returns the bytes of a VMM's reply, as octal escapes for `printf`.
fn answer_of_a_vmm() -> String {
    use clap::Parser;
    let line = ["--kernel", "k", "--memory", "16M"];
    let description = Description::of(&crate::config::Config::try_parse_from(line).unwrap());
    answer::frame(&description).iter().map(|byte| format!("\\{byte:03o}")).collect()
}

#[test]
#[serial_test::serial(children)]
fn refuses_reply_from_another_process() {
    let script = format!("(printf '{}' >&3); exec sleep 1000", answer_of_a_vmm());
    let (error, _) = rehearse(&script, Duration::from_secs(10));
    insta::assert_snapshot!(shown(&error), @r#"cpr-exec-command "/bin/sh" must exec the VMM: the rehearsal started process PID, but process PID replied: a wrapper must replace itself (exec)"#);
}

#[test]
#[serial_test::serial(children)]
fn reports_the_step_at_which_the_command_ended() {
    let step: String = answer::frame(&Word::Step("create the PIT".to_owned()))
        .iter()
        .map(|byte| format!("\\{byte:03o}"))
        .collect();
    let script = format!("printf '{}{step}' >&3; kill -SYS $$", answer_of_a_vmm());
    let (error, _) = rehearse(&script, Duration::from_secs(10));
    insta::assert_snapshot!(error, @r#"cpr-exec-command "/bin/sh" cannot take over this guest: create the PIT: it was killed by SIGSYS"#);
}

/// `sidecar & exec vmm`: the sidecar is a child of the VMM, and its orphans become children of the
/// VMM while a rehearsal is under way.
#[test]
#[serial_test::serial(children)]
fn spares_processes_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let (go, gone) = (folder.path().join("go"), folder.path().join("gone"));
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!(
        "read line <{}; setsid sleep 1000 & echo $! >{}.new; mv {}.new {}",
        go.display(),
        gone.display(),
        gone.display(),
        gone.display()
    );
    let mut sidecar = std::process::Command::new("/bin/sh").arg("-c").arg(script).spawn().unwrap();
    let words = ["/bin/sh", "-c", "exec sleep 1000"].map(str::to_owned);
    let command = ExecCommand::prepare(Some(&words)).unwrap();
    let rehearsal = Rehearsal::start(&command, Duration::from_secs(60), Vec::new()).unwrap();
    std::fs::write(&go, "go\n").unwrap();
    sidecar.wait().unwrap();
    let orphan: i32 = std::fs::read_to_string(&gone).unwrap().trim().parse().unwrap();
    let orphan = Pid::from_raw(orphan);
    assert!(children().contains(&orphan), "the orphan is not ours");
    let began = Instant::now();
    let leftovers = rehearsal.end();
    assert!(began.elapsed() < Duration::from_secs(4));
    kill(orphan, None).expect("the orphan was ended");
    let left = leftovers.iter().find(|left| left.pid() == orphan);
    let left = left.expect("the orphan must be reaped by this process");
    assert!(left.trouble().is_none() && !left.reap());
    kill(orphan, Signal::SIGKILL).unwrap();
    poll(&mut [PollFd::new(left.fd(), PollFlags::POLLIN)], PollTimeout::from(10_000_u16)).unwrap();
    assert!(left.reap());
    assert!(!children().contains(&orphan));
}

/// A thread without privileges rehearses a program that gains all of them.
#[test]
#[serial_test::serial(children)]
fn gives_up_on_processes_that_cannot_be_ended() {
    use std::os::unix::fs::PermissionsExt;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let program = folder.path().join("setpriv");
    std::fs::copy("/usr/bin/setpriv", &program).unwrap();
    mode(folder.path(), 0o755);
    mode(&program, 0o4755);
    let (error, leftovers) = std::thread::spawn(move || {
        const NOBODY: libc::uid_t = 65534;
        // SAFETY: plain integers; the raw call changes the IDs of this thread only.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(changed, 0);
        let words = [program.to_str().unwrap(), "--reuid=0", "sleep", "1000"];
        rehearse_words(&words, Duration::from_millis(500))
    })
    .join()
    .unwrap();
    assert!(error.to_string().contains("did not answer"), "{error}");
    let trouble = leftovers.iter().find_map(RemainingProcess::trouble).expect("it was ended");
    assert!(trouble.contains("Operation not permitted (os error 1)"), "{trouble}");
    let remains = outcome("hangs", Ok(()), &leftovers).unwrap_err().to_string();
    assert!(remains.contains("\"hangs\" left a process behind; process"), "{remains}");
    // This thread may kill them.
    for left in &leftovers {
        kill(left.pid(), Signal::SIGKILL).unwrap();
        poll(&mut [PollFd::new(left.fd(), PollFlags::POLLIN)], PollTimeout::from(10_000_u16))
            .unwrap();
        assert!(left.reap());
    }
}
