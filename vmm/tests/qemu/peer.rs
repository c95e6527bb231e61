//! The two VMMs that are compared, each with an idle guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::trials::Missing;
use crate::support::{Scene, Vm, until};
use crate::wire::Wire;

/// The `hlt` instruction; a file of these is a firmware that halts the vCPU at the reset vector.
const HLT: u8 = 0xf4;

/// QEMU's machine. It uses TCG, because firmware runs at CPL 0, which some hosts emulate.
const MACHINE: &str = "-machine pc,memory-backend=ram,aux-ram-share=on -accel tcg \
    -object memory-backend-memfd,id=ram,size=16M,share=on -m 16M -bios DIR/firmware";

fn qemu() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/.qemu/bin/qemu-system-x86_64")
}

/// Returns why there is no QEMU to compare with, if so.
pub fn qemu_missing() -> Missing {
    let version = Command::new(qemu()).arg("--version").output();
    let there = version.is_ok_and(|output| output.status.success());
    (!there).then(|| "needs QEMU: run ci/install-qemu".to_owned())
}

/// One of the two VMMs, stopped before the guest's first instruction.
pub struct Peer<'a> {
    scene: &'a Scene,
    running: Running<'a>,
    /// The command that started it.
    command: Vec<String>,
}

/// The running VMM; QEMU is killed by [`Peer`], ours by [`Vm`].
enum Running<'a> {
    Qemu(Child),
    Ours(#[expect(dead_code, reason = "kept alive")] Vm<'a>),
}

impl<'a> Peer<'a> {
    /// Starts QEMU with the machine that is updated.
    pub fn qemu(scene: &'a Scene) -> Self {
        scene.write("firmware", vec![HLT; 64 << 10]);
        Self::qemu_with(scene, MACHINE)
    }

    /// Starts QEMU with other arguments.
    pub fn qemu_with(scene: &'a Scene, arguments: &str) -> Self {
        let arguments = scene.words(&format!(
            "{arguments} -nodefaults -display none -qmp unix:DIR/qmp,server=on,wait=off"
        ));
        let stderr = File::create(scene.path("stderr")).expect("a file for stderr");
        let child = Command::new(qemu())
            .args(&arguments)
            .arg("-S")
            .current_dir(scene.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("QEMU starts");
        let mut command = vec![qemu().display().to_string()];
        command.extend(arguments);
        Self { scene, running: Running::Qemu(child), command }
    }

    /// Starts our VMM.
    pub fn ours(scene: &'a Scene) -> Self {
        let vm = scene.start("--kernel DIR/heartbeat --memory 16M --paused");
        let mut command = vm.command_again("");
        // They are added where needed.
        command.retain(|word| !["--incoming", "--paused"].contains(&word.as_str()));
        Self { scene, running: Running::Ours(vm), command }
    }

    /// Returns whether an update ends its connections.
    pub fn hangs_up(&self) -> bool {
        matches!(self.running, Running::Qemu(_))
    }

    /// Opens a connection and reads the greeting.
    pub fn connect(&self) -> Wire {
        // During an update, QEMU's old listener accepts connections that the new one loses.
        until("a greeting", || Wire::connect(&self.scene.path("qmp")))
    }

    /// Replaces this peer's placeholders in `text`: `DIR`, `COMMAND` (to update to itself),
    /// `PAUSED` (the same, without resuming the guest) and `UNREHEARSED` (parameters that turn our
    /// rehearsal off).
    pub fn fill_in(&self, text: &str) -> String {
        let (incoming, paused, unrehearsed) = match self.running {
            Running::Qemu(_) => ("-incoming", "-S", ""),
            Running::Ours(_) => ("--incoming", "--paused", r#""x-cpr-exec-rehearsal": false, "#),
        };
        let mut command = self.command.clone();
        command.push(incoming.to_owned());
        command.push(format!("file:{}", self.scene.path("state").display()));
        let run = serde_json::to_string(&command).expect("texts are JSON");
        command.push(paused.to_owned());
        let wait = serde_json::to_string(&command).expect("texts are JSON");
        text.replace("COMMAND", &run)
            .replace("PAUSED", &wait)
            .replace("UNREHEARSED", unrehearsed)
            .replace("DIR", self.scene.dir())
    }

    /// Removes the paths of this run from `text`.
    pub fn redact(&self, text: &str) -> String {
        self.scene.redact(text)
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        if let Running::Qemu(child) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
