//! Runs single cases on a backend and formats the results as reproducible text.

use std::path::Path;
use std::sync::Arc;

use cpr_harness::backend::Backend;
use cpr_harness::observe::patience::Patience;
use cpr_harness::run::{Options, Report, Verdict, case, requirements};
use cpr_harness::scenario::{Case, parse};
use libtest_mimic::Trial;

/// The harness's binary, which carries the VMM and the mock.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cpr-harness"))
}

/// Why KVM is unavailable, if so.
pub fn kvm_missing() -> Option<String> {
    let device = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    device.err().map(|e| format!("needs /dev/kvm: {e}"))
}

/// A test that is reported as ignored, with the reason, if something is `missing`.
pub fn trial(name: &str, missing: Option<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    let trial = Trial::test(name, || {
        test();
        Ok(())
    });
    match missing {
        None => trial,
        // If everything must run, as in CI, this is an error.
        Some(why) if requirements::all_required() => Trial::test(name, || Err(why.into())),
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

/// Runs the steps of a scenario.
pub fn run(
    backend: impl Backend + 'static,
    name: &str,
    scenario: &str,
    patience: Patience,
) -> Report {
    let cases = parse::parse("test.toml", &format!("test/{name}"), scenario).unwrap();
    run_case(backend, &cases[0], patience)
}

/// Runs a case on `backend`.
pub fn run_case(backend: impl Backend + 'static, case: &Case, patience: Patience) -> Report {
    let evidence = tempfile::tempdir().unwrap();
    case::run(case, &options(backend, evidence.path(), patience))
}

/// The options that cases run with.
pub fn options(backend: impl Backend + 'static, evidence: &Path, patience: Patience) -> Options {
    Options {
        backend: Arc::new(backend),
        evidence: evidence.to_owned(),
        keep: false,
        audits: true,
        patience,
        vmm_option: String::new(),
    }
}

/// The names of the checks that failed.
pub fn failed_checks(report: &Report) -> Vec<&str> {
    match &report.verdict {
        Verdict::Fail(findings) => findings.iter().map(|f| f.check.as_str()).collect(),
        Verdict::Pass => Vec::new(),
        other => panic!("not run: {other:?}"),
    }
}

/// Formats what failed, where and why.
pub fn findings(report: &Report) -> String {
    let Verdict::Fail(findings) = &report.verdict else { return "nothing failed".into() };
    let step = report.failed_step.as_deref().unwrap_or("nowhere");
    let lines: Vec<String> =
        findings.iter().map(|f| format!("{}: {}", f.check, f.message)).collect();
    format!("at {step}\n{}", lines.join("\n"))
}

/// Replaces numbers that differ from run to run.
pub fn stable() -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    for (pattern, name) in [
        (r"/\S*/cpr-\w{6}\b", "[WORK]"),
        (r"/\S*/other-vmm", "[EVIDENCE]/other-vmm"),
        (r"not /\S*/cpr-harness", "not [BINARY]"),
        (r"\b\d+ s \d+ us\b", "[TIME]"),
        (r"\d+, microseconds: \d+", "[TIME]"),
        (r#"seconds\\?": ?\d+,\\?"microseconds\\?": ?\d+"#, "[TIME]"),
        (r"\d+ KiB", "[SIZE]"),
        (r#""id":\d+"#, r#""id":[ID]"#),
        (r"/\S*/parameters_forgotten/", "[EVIDENCE]/"),
        (r"seed=\d+", "seed=[SEED]"),
        (r"process \d+", "process [PID]"),
        (r"processes: \d+", "processes: [PID]"),
        (r"contains .\d+\\n.,", "contains [PID],"),
        (r"former process, .\d+.:", "former process, [PID]:"),
        (r"resumed \S+ after", "resumed [TIME] after"),
        (r"still for [\d.]+m?s, at most [\d.]+m?s is", "still for [TIME], at most [TIME] is"),
        (r"stopped the guest for [\d.]+s", "stopped the guest for [TIME]"),
        (r"in calm times: [^)]*", "in calm times: [TIME]"),
        (r"between heartbeats: [^)]*", "between heartbeats: [TIME]"),
        (r"inode \d+", "inode [INODE]"),
        (r"socket:\[\d+\]", "socket:[[INODE]]"),
        (r"(is|was) \d+ -> ", "$1 [FD] -> "),
        (r"/\S*/mock-vmm-\d+", "[TMPDIR]/mock-vmm-[PID]"),
        (r"descriptor \d+ -> ", "descriptor [FD] -> "),
        (r"STATE=\d+", "STATE=[FD]"),
        (r"\b[0-9a-f]{16}\b", "[DIGEST]"),
        (r"directory was \S+,", "directory was [FOLDER],"),
        (r"(limit `[^`]+`|value|umask) was \S+,", "$1 was [N],"),
        (r"(limit `[^`]+`) was (\S+) is \S+", "$1 was $2 is [N]"),
        (r"(nice|priority|oom_score_adj|RcvBuf|timer_slack) was \S+, is", "$1 was [N], is"),
        (r"priority was \[N\], is \d+", "priority was [N], is [N]"),
        (r"\b[0-9a-f]{2}:[0-9a-f]{2}:\d+", "[INODE]"),
        (r"/\S*/vmm\.log", "[EVIDENCE]/vmm.log"),
        (r"cwd was \S+,", "cwd was [FOLDER],"),
        (r"(Umask|nice|open files) was \S+,", "$1 was [N],"),
        (r"(open files was \[N\], is) \d+", "$1 [N]"),
        (r"argument\.00 was \S+,", "argument.00 was [BINARY],"),
        (r"owner was not there, is \d+:\d+", "owner was not there, is [USER]"),
        (r"KernelPageSize: .*", "[FLAGS]"),
        (r" \| scm_fds 0", ""),
        (r"names thread \d+", "names thread [TID]"),
        (r"(SndBuf|RcvBuf) \d+", "$1 [N]"),
        (r"\d+\n  RcvBuf\n- \d+", "[N]\n  RcvBuf\n- [N]"),
        (r"heartbeat \d+", "heartbeat [N]"),
        (r"ran for [\d.]+\S+ after", "ran for [TIME] after"),
        (r"went from \d+ to \d+", "went from [N] to [N]"),
        (r"\d+ of \d+ pages", "[N] of [N] pages"),
    ] {
        settings.add_filter(pattern, name);
    }
    settings.bind_to_scope()
}
