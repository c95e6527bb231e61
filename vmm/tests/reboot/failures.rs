//! Saves that are refused or fail, and states that are refused.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command as Program;
use std::time::SystemTime;

use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};

use crate::steps::*;
use crate::support::{Beats, Qmp, Scene};
use crate::transfer::{self, is_running, outcome};

pub fn ram_that_would_be_lost_is_refused() {
    let scene = Scene::new();
    let mut texts = Vec::new();
    for memory in ["16M", "16M,share=off"] {
        let mut vm = scene.start(&format!("--kernel DIR/heartbeat --memory {memory}"));
        let mut qmp = vm.qmp();
        set_mode(&mut qmp, None);
        texts.extend(qmp.migration().blocked_reasons.expect("the mode is blocked"));
        texts.push(begin(&scene, &mut qmp, "file:DIR/state").expect_err("it is refused").desc);
        is_unaffected(&scene, &mut qmp);
        quit(&mut vm, &mut qmp);
    }
    snapshot(&scene, "reboot_blocked", &texts);
}

/// Checks that a refused save has changed nothing.
fn is_unaffected(scene: &Scene, qmp: &mut Qmp) {
    assert_eq!(qmp.run_state(), RunState::Running);
    assert_eq!(qmp.migration().status, None);
    assert_eq!(qmp.take_events(), []);
    assert!(!scene.path("state").exists());
}

pub fn removed_ram_file_is_refused() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    fs::remove_file(ram(&scene)).unwrap();
    let text = begin(&scene, &mut qmp, "file:DIR/state").expect_err("it is refused").desc;
    assert!(text.contains("a file that was removed"), "{text}");
    is_unaffected(&scene, &mut qmp);
}

pub fn channels_are_refused_by_name() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    symlink("target", scene.path("link")).unwrap();
    let uris = [
        "tcp:localhost:1",
        "unix:DIR/socket",
        "exec:cat",
        "fd:7",
        "file:DIR/missing/state",
        "file:DIR",
        "file:DIR/link",
        "file:DIR/pc.ram",
        "file:/dev/full",
        "file:DIR/state,offset=0x10",
    ];
    let refused =
        |uri: &&str| begin(&scene, &mut qmp, uri).expect_err("it is refused").desc.to_string();
    let texts: Vec<_> = uris.iter().map(refused).collect();
    let texts: Vec<_> =
        texts.iter().map(|text| text.replace(&descriptor_number(text), "N")).collect();
    snapshot(&scene, "reboot_channels", &texts);
    is_unaffected(&scene, &mut qmp);
    can_be_saved(&scene, &mut vm, &mut qmp, &beats);
}

/// Returns the number of a descriptor that a text names, which differs from run to run.
fn descriptor_number(text: &str) -> String {
    let number = text.split_once("(descriptor ").and_then(|(_, rest)| rest.split_once(')'));
    number.map_or("no number".to_owned(), |(number, _)| number.to_owned())
}

pub fn full_disk_is_refused_before_the_guest_stops() {
    let scene = Scene::new();
    scene.write("pc.ram", []);
    File::options().write(true).open(ram(&scene)).unwrap().set_len(16 << 20).unwrap();
    // The RAM file is allocated beforehand, so only the state hits the limit.
    let mut first = scene.start(GUEST);
    let mut first_qmp = first.qmp();
    quit(&mut first, &mut first_qmp);
    let mut vm = scene.start_with(GUEST, |program| limit_file_size(program, 17 << 20));
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    let pid = nix::unistd::Pid::from_raw(vm.pid() as i32);
    set_file_limit(pid, 16 << 10);
    let text = begin(&scene, &mut qmp, "file:DIR/state").expect_err("it is refused").desc;
    assert!(text.contains("cannot reserve") && text.contains("File too large"), "{text}");
    is_unaffected(&scene, &mut qmp);
    set_file_limit(pid, 17 << 20);
    can_be_saved(&scene, &mut vm, &mut qmp, &beats);
}

fn set_file_limit(pid: nix::unistd::Pid, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: 17 << 20 };
    // SAFETY: a structure that outlives the call, and no result to write.
    let result =
        unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn limit_file_size(program: &mut Program, bytes: u64) {
    // SAFETY: a system call on numbers.
    unsafe {
        program.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_FSIZE, bytes, bytes)?));
    }
}

/// On a tmpfs that has room for the RAM file, but not for a state.
pub fn full_file_system_is_refused() {
    let scene = Scene::new();
    let small = scene.path("small");
    fs::create_dir(&small).unwrap();
    let mut vm = scene.start_with(
        "--kernel DIR/heartbeat --memory 16M,file=DIR/small/pc.ram --follow-symlinks on",
        |program| {
            let small = CString::new(small.as_os_str().as_encoded_bytes()).unwrap();
            // SAFETY: system calls only, on strings that were made before.
            unsafe {
                program.pre_exec(move || {
                    unshare(CloneFlags::CLONE_NEWNS)?;
                    mount(c"none", c"/", None, libc::MS_PRIVATE | libc::MS_REC)?;
                    mount(c"tmpfs", &small, Some(c"size=16448k"), 0)
                });
            }
        },
    );
    let mut qmp = vm.qmp();
    let text = begin(&scene, &mut qmp, "file:DIR/small/state").expect_err("it is refused").desc;
    assert!(text.contains("cannot reserve") && text.contains("No space left"), "{text}");
    is_unaffected(&scene, &mut qmp);
    // The guest's RAM is all there: it can use every page.
    begin(&scene, &mut qmp, "file:DIR/state").expect("there is room elsewhere");
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed);
}

fn mount(
    kind: &CStr,
    at: &CStr,
    options: Option<&CStr>,
    flags: libc::c_ulong,
) -> std::io::Result<()> {
    let options = options.map_or(std::ptr::null(), |options| options.as_ptr().cast());
    // SAFETY: NUL-terminated strings; the kernel keeps no pointer.
    let result =
        unsafe { libc::mount(c"none".as_ptr(), at.as_ptr(), kind.as_ptr(), flags, options) };
    Ok(Errno::result(result).map(drop)?)
}

pub fn too_large_ram_file_is_refused() {
    let scene = Scene::new();
    let mut vm = scene.start_with(GUEST, |program| limit_file_size(program, 8 << 20));
    assert_eq!(vm.end().code(), Some(1));
    let text = vm.stderr();
    assert!(text.contains("cannot allocate 16777216 bytes for the RAM file"), "{text}");
    assert!(!ram(&scene).exists());
}

pub fn unusable_ram_files_are_refused_by_name() {
    let scene = Scene::new();
    scene.write("short", [0; 4096]);
    symlink("short", scene.path("link")).unwrap();
    let mut texts = Vec::new();
    for file in ["short", "link", "missing/ram", "."] {
        let guest = format!("--kernel DIR/heartbeat --memory 16M,file=DIR/{file}");
        let mut vm = scene.start(&guest);
        assert_eq!(vm.end().code(), Some(1), "{file}");
        texts.push(vm.stderr().trim_end().to_owned());
    }
    texts.push(refused(&scene, GUEST));
    snapshot(&scene, "reboot_ram_files", &texts);
    assert_eq!(fs::metadata(scene.path("short")).unwrap().len(), 4096);
}

/// Starts a VMM, saves its guest and ends it.
fn saved_guest(scene: &Scene) {
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    is_running(&mut qmp, &Beats::of(vm.pid()), 1);
    save(scene, &mut qmp);
    quit(&mut vm, &mut qmp);
}

fn continues(scene: &Scene) {
    let (new, mut qmp) = continued(scene, "last-", GUEST);
    is_running(&mut qmp, &Beats::of(new.pid()), 1);
}

/// The options for a guest that a failed update left behind are the wrong ones here.
pub fn rescue_options_leave_the_saved_guest() {
    let scene = Scene::new();
    saved_guest(&scene);
    let ram = ram(&scene).display().to_string();
    let arguments = "--kernel DIR/heartbeat --memory 16M --incoming file:DIR/state";
    let arguments = format!("{arguments} --incoming-ram {ram}");
    let mut vm = scene.start_beside("refused-", &arguments, |_| {});
    assert_eq!(vm.end().code(), Some(1), "{}", vm.stderr());
    continues(&scene);
}

pub fn damaged_states_are_refused() {
    let scene = Scene::new();
    saved_guest(&scene);
    let good = fs::read(scene.path("state")).unwrap();
    let mut texts = Vec::new();
    fs::remove_file(scene.path("state")).unwrap();
    texts.push(refused(&scene, GUEST));
    scene.write("state", []);
    texts.push(refused(&scene, GUEST));
    for kept in [10, good.len() / 2, good.len() - 1] {
        scene.write("state", &good[..kept]);
        assert!(refused(&scene, GUEST).contains("not a saved state"), "{kept} bytes");
    }
    for bit in [100, good.len() * 4, good.len() * 8 - 1] {
        let mut damaged = good.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        scene.write("state", damaged);
        assert!(refused(&scene, GUEST).contains("not a saved state"), "bit {bit}");
    }
    // A state that a transfer has left, of the same kind of machine.
    let guest = "--kernel DIR/heartbeat --memory 16M";
    let mut other = scene.start_beside("other-", guest, |_| {});
    let mut qmp = other.qmp();
    let incoming = transfer::incoming(&scene, "new-", "file:DIR/state");
    let mut new = scene.start_beside("new-", &format!("{guest} {incoming}"), |_| {});
    let mut new_qmp = new.qmp();
    transfer::begin(&scene, &mut qmp, "new-", "file:DIR/state").expect("it is accepted");
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed);
    quit(&mut other, &mut qmp);
    quit(&mut new, &mut new_qmp);
    texts.push(refused(&scene, GUEST));
    scene.write("state", &good);
    snapshot(&scene, "reboot_damaged", &texts);
    continues(&scene);
}

pub fn other_machines_are_refused_by_name() {
    let scene = Scene::new();
    saved_guest(&scene);
    let mut texts = Vec::new();
    for other in [
        format!("{GUEST} --cpus 2"),
        format!("{GUEST} --test-device on"),
        GUEST.replace("16M", "32M"),
        GUEST.replace(",file=DIR/pc.ram", ""),
        GUEST.replace("pc.ram", "other.ram"),
    ] {
        texts.push(refused(&scene, &other));
    }
    assert!(!scene.path("other.ram").exists());
    snapshot(&scene, "reboot_other_machine", &texts);
    continues(&scene);
}

pub fn changed_ram_is_refused() {
    let scene = Scene::new();
    saved_guest(&scene);
    let file = File::options().read(true).write(true).open(ram(&scene)).unwrap();
    let dated = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 12_345_678).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 12_345_678).unwrap();
    let mut texts = vec![refused(&scene, GUEST)];
    // A copy or a damaged disk may keep the time.
    file.set_modified(dated).unwrap();
    texts.push(refused(&scene, GUEST));
    file.write_all_at(&byte, 12_345_678).unwrap();
    file.set_modified(SystemTime::now()).unwrap();
    texts.push(refused(&scene, GUEST));
    snapshot(&scene, "reboot_changed_ram", &texts);
    file.set_modified(dated).unwrap();
    continues(&scene);
}
