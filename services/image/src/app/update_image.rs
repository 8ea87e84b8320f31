use super::{App, Call, ImageView, image_name};
use crate::error::Error;
use crate::model::Prefix;
use crate::model::image::{self, Image};
use crate::store;
use std::sync::Arc;

/// Makes the image that an update asks for out of the one there is; an error refuses it.
pub type ImageChange = Box<dyn FnOnce(&mut Image) -> Result<(), Error> + Send>;

/// Changes an image's writable fields. An `etag` that is not empty must be the current one.
pub async fn update_image(
    app: &Arc<App>,
    call: Call<ImageView>,
    prefix: &Prefix,
    etag: &str,
    change: ImageChange,
) -> Result<ImageView, Error> {
    let _writing = app.writing.lock().await;
    let mut view = super::get_image(app, prefix)?;
    let name = image_name(&view.image.fingerprint);
    if !etag.is_empty() && etag != view.image.etag() {
        return Err(Error::Rpc(berth_rpc::Error::etag_mismatch(name)));
    }
    let image = Arc::make_mut(&mut view.image);
    change(image)?;
    check(image)?;
    let outcome = async {
        let mut tx = app.store.begin().await?;
        store::update_image(&mut tx, &view.image).await?;
        tx.emit(store::event("image-updated", name, [], &call.traceparent))
            .await?;
        call.commit(tx, &view).await
    };
    let outcome = outcome.await;
    app.settled(outcome).await?;
    app.change(|catalogue| {
        let mut image = (*view.image).clone();
        // A launch may have used it while the transaction ran.
        if let Some(now) = catalogue.image(&image.fingerprint) {
            image.last_used_at = now.last_used_at;
        }
        catalogue.put_image(image);
    });
    app.view(&view.image.fingerprint)
}

fn check(image: &Image) -> Result<(), Error> {
    image::check_properties(&image.properties).map_err(|(key, sentence)| {
        let field = key.map_or_else(String::new, |key| format!(".{key}"));
        Error::invalid(format!("image.properties{field}"), sentence)
    })
}
