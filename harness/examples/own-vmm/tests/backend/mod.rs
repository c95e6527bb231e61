//! The VMM: how it is started, and how it is controlled.
//!
//! So that it runs anywhere, this is the VMM in the harness, which is used here only through its command line
//! and a socket on which it takes requests.

mod process;

use std::io;
use std::path::Path;
use std::sync::Arc;

use cpr_harness::backend::control::Control;
use cpr_harness::backend::cpr_vmm::CprVmm;
use cpr_harness::backend::{AcrossExec, Backend, Channels, Dialect, Feature, Launch};
use cpr_harness::observe::files::Files;
use cpr_harness::scenario::{CommandKind, Mode};
use process::Process;

pub struct OwnVmm {
    vmm: CprVmm,
}

impl OwnVmm {
    pub fn new() -> io::Result<Self> {
        Ok(Self { vmm: CprVmm::carried()? })
    }
}

/// The socket on which the VMM takes requests; on `qmp` itself the harness serves QMP.
fn own_socket(qmp: &str) -> String {
    format!("{qmp}-own")
}

fn with_own_socket(mut arguments: Vec<String>, launch: Launch<'_>) -> Vec<String> {
    let qmp = &launch.files.qmp;
    for argument in &mut arguments {
        if *argument == format!("unix:{qmp}") {
            *argument = format!("unix:{}", own_socket(qmp));
        }
    }
    arguments
}

impl Backend for OwnVmm {
    fn name(&self) -> &'static str {
        "own-vmm"
    }

    fn binary(&self) -> &Path {
        self.vmm.binary()
    }

    fn arguments(&self, launch: Launch<'_>) -> Vec<String> {
        with_own_socket(self.vmm.arguments(launch), launch)
    }

    fn update_arguments(&self, launch: Launch<'_>, state: &str) -> Vec<String> {
        with_own_socket(self.vmm.update_arguments(launch, state), launch)
    }

    fn transfer_arguments(&self, launch: Launch<'_>, channels: &Channels) -> Vec<String> {
        with_own_socket(self.vmm.transfer_arguments(launch, channels), launch)
    }

    fn change_arguments(&self, kind: CommandKind, arguments: &mut Vec<String>) {
        self.vmm.change_arguments(kind, arguments);
    }

    fn control(
        &self,
        launch: Launch<'_>,
        _incoming: Option<&Channels>,
    ) -> io::Result<Option<Arc<dyn Control>>> {
        Ok(Some(Arc::new(Process::new(own_socket(&launch.files.qmp).into()))))
    }

    fn control_socket(&self, files: &Files) -> Option<String> {
        Some(own_socket(&files.qmp))
    }

    fn dialect(&self) -> Dialect {
        Dialect {
            across_exec: AcrossExec::Recreated,
            private_ram_blocks: false,
            counts_copied_ram: false,
            ..self.vmm.dialect()
        }
    }

    /// What its tests need and it does not have; it can update to another process only.
    fn lacks(&self, feature: Feature) -> Option<String> {
        match feature {
            Feature::Mode(Mode::CprTransfer) | Feature::Prelaunch | Feature::Log => None,
            other => Some(format!("own-vmm lacks {other:?}")),
        }
    }

    fn uses_kvm(&self) -> bool {
        true
    }
}
