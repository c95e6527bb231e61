//! The small binary that is shipped and measured; everything is in the library.

use cpr_vmm::reserve::Reserve;

#[global_allocator]
static ALLOCATOR: Reserve = Reserve::new();

fn main() -> std::process::ExitCode {
    cpr_vmm::main(std::env::args_os().skip(1))
}
