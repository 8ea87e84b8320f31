//! What every owner does with a request id: the same one gets the same answer and no second effect.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_rpc::Error;
use prost::Message;
use tonic::{Response, Status};

/// State behind a lock, and the answers given so far.
#[derive(Debug, Default)]
pub struct Replaying<S> {
    state: Mutex<S>,
    answers: Mutex<HashMap<String, Vec<u8>>>,
}

impl<S> Replaying<S> {
    /// The state, to look at or to arrange.
    pub fn lock(&self) -> MutexGuard<'_, S> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it, unless a request of this id did.
    pub fn once<M: Message + Default>(
        &self,
        request_id: &str,
        effect: impl FnOnce(&mut S) -> Result<M, Error>,
    ) -> Result<Response<M>, Status> {
        let mut state = self.lock();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if !request_id.is_empty()
            && let Some(before) = answers.get(request_id)
        {
            return Ok(Response::new(M::decode(before.as_slice()).unwrap()));
        }
        let answer = effect(&mut state)?;
        if !request_id.is_empty() {
            answers.insert(request_id.to_owned(), answer.encode_to_vec());
        }
        Ok(Response::new(answer))
    }

    /// A read, or a change that is idempotent by itself.
    pub fn with<M>(
        &self,
        look: impl FnOnce(&mut S) -> Result<M, Error>,
    ) -> Result<Response<M>, Status> {
        Ok(Response::new(look(&mut self.lock())?))
    }
}

/// The answer of what a fake does not have.
pub fn no<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Error::unimplemented(format!("the fake has no {what}")).into())
}

/// The last segment.
pub fn last(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}
