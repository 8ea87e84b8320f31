//! When an undo may act.
//!
//! An undo that deletes by name must not delete what somebody else made under that name meanwhile.
//! So each effect is noted before it is tried, and the note is taken back when the owner refuses:
//! what was never tried, or was refused, is not ours to undo.

use std::future::Future;

use berth_rpc::{Code, Error};

use super::Context;

/// Tries `effect`, noting under `key` whether it may have happened.
pub(super) async fn noted<T>(
    ctx: &Context,
    key: &str,
    effect: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    ctx.put(key, &true)?;
    let result = effect.await;
    if let Err(error) = &result
        && is_refusal(error)
    {
        ctx.put(key, &false)?;
    }
    result
}

/// Whether the effect noted under `key` may have happened.
pub(super) fn may_have_happened(ctx: &Context, key: &str) -> Result<bool, Error> {
    Ok(ctx.output::<bool>(key)?.unwrap_or(false))
}

/// Owners refuse before they do anything; what fails otherwise may be half done.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error.code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}

/// What is not there any more is undone.
pub(super) fn absent_is_fine<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.code != Code::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A call's answer without tonic's wrapping.
pub(super) fn answer<T>(result: Result<tonic::Response<T>, tonic::Status>) -> Result<T, Error> {
    result.map(tonic::Response::into_inner).map_err(Error::from)
}
