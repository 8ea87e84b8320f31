//! Compiles a policy into the BPF program that a guest's init loads. Programs are kept: a policy is
//! compiled once for all guests that share it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use berth_monitor::spec::Bpf;
use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};

use crate::Error;
use crate::model::syscalls::{Action, Policy};

/// umount2's flag that aborts requests of the whole filesystem.
const MNT_FORCE: u64 = 1;

/// Compiled programs by policy.
#[derive(Debug, Default)]
pub struct Programs {
    compiled: Mutex<HashMap<Policy, Arc<Bpf>>>,
}

impl Programs {
    pub fn get(&self, policy: &Policy) -> Result<Arc<Bpf>, Error> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = compiled.get(policy) {
            return Ok(program.clone());
        }
        let program = Arc::new(Bpf(compile(policy)?));
        compiled.insert(policy.clone(), program.clone());
        Ok(program)
    }
}

fn compile(policy: &Policy) -> Result<Vec<u8>, Error> {
    let mut filter = new_filter().map_err(Error::internal)?;
    for denied in &policy.denied {
        let syscall = ScmpSyscall::from_name(&denied.name).map_err(|_| {
            Error::invalid(
                "config.security.syscalls.deny",
                format!("Unknown system call {:?}", denied.name),
            )
        })?;
        let action = match denied.action {
            Action::Errno(errno) => ScmpAction::Errno(errno),
            Action::Kill => ScmpAction::KillProcess,
        };
        filter.add_rule(action, syscall).map_err(Error::internal)?;
    }
    if policy.no_forced_umount {
        forced_umount(&mut filter).map_err(Error::internal)?;
    }
    export(&filter).map_err(Error::internal)
}

/// The library writes programs to descriptors only; libseccomp before 2.6 knows no other way.
fn export(filter: &ScmpFilterContext) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek};
    let fd = rustix::fs::memfd_create("berth-seccomp", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    filter.export_bpf(&file).map_err(std::io::Error::other)?;
    file.rewind()?;
    let mut program = Vec::new();
    file.read_to_end(&mut program)?;
    Ok(program)
}

fn new_filter() -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    // A guest's setuid programs must keep working.
    filter.set_ctl_nnp(false)?;
    if cfg!(target_arch = "x86_64") {
        filter.add_arch(ScmpArch::X86)?;
        filter.add_arch(ScmpArch::X32)?;
    }
    Ok(filter)
}

fn forced_umount(filter: &mut ScmpFilterContext) -> Result<(), SeccompError> {
    let forced = ScmpArgCompare::new(1, ScmpCompareOp::MaskedEqual(MNT_FORCE), MNT_FORCE);
    let umount2 = ScmpSyscall::from_name("umount2")?;
    filter.add_rule_conditional(ScmpAction::Errno(libc::EACCES), umount2, &[forced])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_compiles_and_is_kept() {
        let programs = Programs::default();
        let policy = Policy::new(true, "").unwrap();
        let first = programs.get(&policy).unwrap();
        assert!(
            first.0.len() > 80 && first.0.len().is_multiple_of(8),
            "{}",
            first.0.len()
        );
        assert!(Arc::ptr_eq(&first, &programs.get(&policy).unwrap()));
        let other = Policy::new(true, "ptrace errno 1").unwrap();
        assert_ne!(first.0, programs.get(&other).unwrap().0);
    }

    #[test]
    fn unknown_calls_are_named() {
        let error = Programs::default()
            .get(&Policy::new(true, "no_such_call").unwrap())
            .unwrap_err();
        assert!(error.message.contains("no_such_call"));
    }
}
