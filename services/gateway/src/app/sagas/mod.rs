//! Every durable change, as a list of named steps.

mod carry;
pub mod changes;
pub mod devices;
pub mod images;
pub mod instances;
pub mod networks;
pub mod pools;
pub mod profiles;
mod undo;
pub mod volumes;

use berth_operations::{Saga, State, StepContext};
use berth_rpc::{Code, Error};
use serde::Serialize;

use crate::app::operations::About;
use crate::{App, Gateway};

/// What steps get.
pub type Context = StepContext<Gateway>;

/// Every saga there is; the runner knows no other, and the generic suites go through all.
pub fn all() -> Vec<Saga<Gateway>> {
    let mut all = instances::all();
    all.extend([
        images::delete(),
        networks::create(),
        networks::delete(),
        pools::create(),
        pools::delete(),
        profiles::create(),
        profiles::delete(),
        profiles::rename(),
        profiles::update(),
        volumes::create(),
        volumes::create_snapshot(),
        volumes::delete(),
        volumes::delete_snapshot(),
        volumes::relocate(),
        volumes::rename_snapshot(),
        volumes::restore(),
    ]);
    all
}

/// Runs a saga to its end, for changes that clients see as one request.
///
/// # Errors
/// What made it fail, as if its owner had been called directly.
pub async fn finish<P: Serialize>(
    app: &App,
    saga: &str,
    params: &P,
    about: About,
) -> Result<(), Error> {
    let record = app
        .operations
        .start(saga, params, about)
        .await?
        .wait(None)
        .await;
    match (record.state, record.failure) {
        (State::Succeeded, _) => Ok(()),
        (_, Some(failure)) => Err(failure.into()),
        (_, None) => Err(Error::new(
            Code::Cancelled,
            "CANCELLED",
            "the operation was cancelled",
        )),
    }
}
