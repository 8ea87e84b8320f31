use super::{App, ImageView, now};
use crate::error::Error;
use crate::model::{Hold, Image, Prefix};
use crate::store;
use std::sync::Arc;

/// Adds a hold, or prolongs the same authority's. Writes nothing when it is there already.
pub async fn hold_image(app: &Arc<App>, prefix: &Prefix, hold: Hold) -> Result<ImageView, Error> {
    let _writing = app.writing.lock().await;
    let mut view = super::get_image(app, prefix)?;
    let fingerprint = view.image.fingerprint.clone();
    if let Some(there) = view.image.holds.get(&hold.holder) {
        if *there == hold {
            return Ok(view);
        }
        if there.is_live(now()) && there.authority != hold.authority {
            return Err(Error::Rpc(berth_rpc::Error::precondition(
                "HOLD_AUTHORITY",
                format!(
                    "{} holds image {fingerprint} under the authority of {:?}",
                    hold.holder, there.authority
                ),
            )));
        }
    }
    let outcome = async {
        let mut tx = app.store.begin().await?;
        store::put_hold(&mut tx, &fingerprint, &hold).await?;
        tx.commit().await.map_err(Error::from)
    };
    let outcome = outcome.await;
    app.settled(outcome).await?;
    let image = Arc::make_mut(&mut view.image);
    image.holds.insert(hold.holder.clone(), hold);
    change_holds(app, image);
    app.view(&fingerprint)
}

/// Releases a hold; one that isn't there is released already.
pub async fn release_image(
    app: &Arc<App>,
    prefix: &Prefix,
    holder: &str,
) -> Result<ImageView, Error> {
    let _writing = app.writing.lock().await;
    let mut view = super::get_image(app, prefix)?;
    let fingerprint = view.image.fingerprint.clone();
    if !view.image.holds.contains_key(holder) {
        return Ok(view);
    }
    let outcome = async {
        let mut tx = app.store.begin().await?;
        store::delete_hold(&mut tx, &fingerprint, holder).await?;
        tx.commit().await.map_err(Error::from)
    };
    let outcome = outcome.await;
    app.settled(outcome).await?;
    let image = Arc::make_mut(&mut view.image);
    image.holds.remove(holder);
    change_holds(app, image);
    app.view(&fingerprint)
}

fn change_holds(app: &App, changed: &Image) {
    app.change(|catalogue| {
        if let Some(image) = catalogue.image(&changed.fingerprint) {
            let mut image = (**image).clone();
            image.holds.clone_from(&changed.holds);
            catalogue.put_image(image);
        }
    });
}
