//! Tests the golden states in `scenarios/golden/`: this VMM loads each, or refuses its version.

// Other tests use the rest of them.
#[path = "../src/state/golden.rs"]
#[allow(dead_code)]
mod golden;
#[allow(dead_code, unused_imports)]
mod support;

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cpr_qmp::command::Command;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use cpr_vmm::machine::SECTIONS;
use cpr_vmm::state::{KnownSection, STATE_VERSION, known_versions};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use support::Scene;
use support::trials::{kvm, trial};

const VMM: &str = env!("CARGO_BIN_EXE_cpr-vmm");
/// Environment variable that asks to write golden states; see `src/state/golden.rs`.
const WRITE: &str = "CPR_WRITE_GOLDEN";
/// The file that describes the host on which the states of a format were saved.
const HOST: &str = "host.txt";

/// The golden states: name, and options of the VM.
const STATES: [(&str, &str); 4] = [
    ("1cpu-running", "--cpus 1 --serial null"),
    ("2cpus-paused", "--cpus 2 --serial null"),
    ("2cpus-serial-socket", "--cpus 2 --serial unix:DIR/serial"),
    ("1cpu-virtio-rng", "--cpus 1 --serial null --device virtio-rng"),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut tests = Vec::new();
    for format in formats() {
        let name = format.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let readable = golden::is_readable(&format, &SECTIONS);
        for (state, options) in STATES {
            let path = format.join(format!("{state}.state"));
            // Older formats have no such device.
            if !path.exists() {
                continue;
            }
            let what = if readable { "is_loaded" } else { "is_refused" };
            let name = format!("golden_{name}_{state}_{what}");
            let test =
                move || if readable { loads(&path, options) } else { refuses(&path, options) };
            tests.push(match kvm() {
                None => Trial::ignorable_test(name, test),
                missing => trial(name, missing, || {}),
            });
        }
    }
    if std::env::var_os(WRITE).is_some() {
        tests.push(trial("golden_states_are_written", kvm(), write));
    }
    libtest_mimic::run(&arguments, tests).exit_code()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/golden")
}

fn formats() -> Vec<PathBuf> {
    let entries = fs::read_dir(folder()).into_iter().flatten().flatten();
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        path.is_dir() && name.is_some_and(|name| name.starts_with("state"))
    };
    let mut formats: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_one).collect();
    formats.sort();
    formats
}

/// Describes the host features that the registers of a vCPU depend on.
fn host() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").expect("/proc is mounted");
    let first = info.split("\n\n").next().unwrap_or_default();
    let field = |name: &str| {
        let line =
            first.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(": "));
        line.unwrap_or("unknown").to_owned()
    };
    let cpu = ["vendor_id", "cpu family", "model\t", "stepping"].map(field).join("-");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    format!("CPU {cpu}\nLinux {}\n", kernel.trim())
}

fn arguments(state: &Path, options: &str) -> String {
    let state = state.display();
    format!("--memory 16M {options} --paused --incoming file:{state} --incoming-ram DIR/ram")
}

/// Creates a scene with a file of zeroed RAM.
fn scene() -> Scene {
    let scene = Scene::new();
    let ram = scene.write("ram", "");
    let ram = fs::File::options().write(true).open(ram).expect("it was just written");
    ram.set_len(16 << 20).expect("a sparse file");
    scene
}

/// Checks that KVM accepts the whole state, and that the state saved from it can be loaded again.
fn loads(state: &Path, options: &str) -> Result<Completion, Failed> {
    let scene = scene();
    let mut vm = scene.start(&arguments(state, options));
    let saved_on = fs::read_to_string(state.with_file_name(HOST)).unwrap_or_default();
    if saved_on != host()
        && let Some(why) = refusal(&scene, &mut vm)
        && ["KVM_SET_", "this host's KVM"].iter().any(|part| why.contains(part))
    {
        let why = format!("saved on another host ({}): {why}", saved_on.trim().replace('\n', ", "));
        return Ok(Completion::ignored_with(why));
    }
    let mut qmp = vm.qmp();
    assert_eq!(qmp.run_state(), RunState::Paused);
    let words =
        format!("{VMM} --qmp unix:DIR/qmp --memory 16M {options} --incoming file:DIR/state");
    let status = qmp.update(&scene.words(&words), &vm.state_file());
    assert_eq!(status, MigrationStatus::Completed, "{:?}", qmp.migration().error_desc);
    assert_eq!(qmp.run_state(), RunState::Paused);
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
    Ok(Completion::Completed)
}

/// Returns the error of a VMM that does not start; `None` if it starts.
fn refusal(scene: &Scene, vm: &mut support::Vm<'_>) -> Option<String> {
    // The socket alone tells nothing: it is there before KVM gets the state.
    let started = support::until("the QMP greeting, or the end", || {
        if vm.has_ended() {
            return Ok(false);
        }
        let mut client = UnixStream::connect(scene.path("qmp")).map_err(|_| "no QMP socket")?;
        client.set_read_timeout(Some(Duration::from_secs(1))).map_err(|_| "no timeout")?;
        client.read_exact(&mut [0]).map(|()| true).map_err(|_| "no greeting")
    });
    (!started).then(|| vm.stderr().trim().to_owned())
}

fn refuses(state: &Path, options: &str) -> Result<Completion, Failed> {
    let scene = scene();
    let mut vm = scene.start(&arguments(state, options));
    let code = vm.end().code();
    let said = vm.stderr();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("section ") && said.contains(", this binary reads version "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    Ok(Completion::Completed)
}

/// Saves states of this format, which must not exist yet.
fn write() {
    let format = folder().join(golden::own(&SECTIONS));
    fs::create_dir(&format).unwrap_or_else(|error| {
        panic!(
            "{format:?}: {error}: golden states are never changed; a new format has new versions"
        )
    });
    for (name, options) in STATES {
        let scene = Scene::new();
        let mut vm = scene.start(&format!("--kernel DIR/heartbeat --memory 16M {options}"));
        let mut qmp = vm.qmp();
        if name.contains("paused") {
            qmp.done(Command::Stop);
        }
        vm.update(&mut qmp);
        let saved = fs::read(vm.state_file()).expect("an update leaves its state file");
        fs::write(format.join(format!("{name}.state")), saved).expect("the folder exists");
    }
    fs::write(format.join(HOST), host()).expect("the folder exists");
}
