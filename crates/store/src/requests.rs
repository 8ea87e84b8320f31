use crate::{Fetch, Store, StoreError, Tx, args};

impl Tx {
    /// Records the answer of a request together with its effect, so that a retry gets the same.
    /// An empty id records nothing.
    pub async fn finish_request(
        &mut self,
        request_id: &str,
        response: Vec<u8>,
    ) -> Result<(), StoreError> {
        if request_id.is_empty() {
            return Ok(());
        }
        self.execute(
            "INSERT INTO berth_requests (request_id, response, finished_at) VALUES ($1, $2, $3)
             ON CONFLICT (request_id) DO UPDATE SET response = excluded.response",
            args![request_id, response, crate::now()],
        )
        .await?;
        Ok(())
    }

    /// Forgets answers older than `before` (RFC 3339).
    pub async fn forget_requests(&mut self, before: &str) -> Result<u64, StoreError> {
        self.execute(
            "DELETE FROM berth_requests WHERE finished_at < $1",
            args![before],
        )
        .await
    }
}

impl Store {
    /// The recorded answer of a request.
    pub async fn finished_request(&self, request_id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        if request_id.is_empty() {
            return Ok(None);
        }
        self.read()
            .fetch_optional(
                "SELECT response FROM berth_requests WHERE request_id = $1",
                args![request_id],
            )
            .await?
            .map(|row| row.bytes("response"))
            .transpose()
    }
}
