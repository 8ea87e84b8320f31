use super::{App, ImageView, now};
use crate::error::Error;
use crate::model::catalogue::Miss;
use crate::model::{Kind, Prefix, Selector};

/// The one image whose fingerprint begins so.
pub fn get_image(app: &App, prefix: &Prefix) -> Result<ImageView, Error> {
    let catalogue = app.catalogue();
    let image = catalogue.by_prefix(prefix).map_err(|miss| match miss {
        Miss::Ambiguous => Error::Ambiguous,
        Miss::None | Miss::Kind(_) => Error::NoImage(prefix.as_str().to_owned()),
    })?;
    Ok(ImageView {
        image: image.clone(),
        aliases: catalogue.aliases_of(&image.fingerprint),
    })
}

/// The image to make an instance from; `touch` notes the use. Answered from memory: this is on
/// the way of every launch.
pub fn resolve_image(
    app: &App,
    selector: &Selector,
    kind: Option<Kind>,
    touch: bool,
) -> Result<ImageView, Error> {
    let view = {
        let catalogue = app.catalogue();
        let image = catalogue
            .select(selector, kind)
            .map_err(|miss| miss_error(miss, selector))?;
        if catalogue.is_damaged(&image.fingerprint) {
            return Err(Error::Damaged(image.fingerprint.to_string()));
        }
        ImageView {
            image: image.clone(),
            aliases: catalogue.aliases_of(&image.fingerprint),
        }
    };
    if !touch {
        return Ok(view);
    }
    let fingerprint = &view.image.fingerprint;
    let at = now();
    app.change(|catalogue| catalogue.touch(fingerprint, at));
    app.uses.note(fingerprint, at);
    app.view(fingerprint)
}

fn miss_error(miss: Miss, selector: &Selector) -> Error {
    match (miss, selector) {
        (Miss::Ambiguous, _) => Error::Ambiguous,
        // An alias counts only for its kind: a name of the other kind is as good as none.
        (_, Selector::Alias(name)) => Error::NoAlias(name.to_string()),
        (Miss::Kind(kind), Selector::Fingerprint(prefix)) => {
            Error::Rpc(berth_rpc::Error::precondition(
                "IMAGE_TYPE",
                format!("Image {:?} is of type {}", prefix.as_str(), kind.as_str()),
            ))
        }
        (Miss::None, Selector::Fingerprint(prefix)) => Error::NoImage(prefix.as_str().to_owned()),
        (_, Selector::Properties(properties)) => {
            let wanted: Vec<String> = properties.iter().map(|(k, v)| format!("{k}={v}")).collect();
            Error::NoImage(wanted.join(" "))
        }
    }
}
