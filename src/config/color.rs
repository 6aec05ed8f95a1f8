//! A colour, and what can be read on what (WCAG 2.2, 1.4.3).
use std::fmt;
use std::str::FromStr;

/// The contrast that text needs (WCAG 2.2, 1.4.3, level AA).
const READABLE: f64 = 4.5;

/// Red, green and blue, in sRGB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Color(pub(crate) [u8; 3]);

impl Color {
    pub(crate) const WHITE: Self = Self([255; 3]);
    pub(crate) const BLACK: Self = Self([0; 3]);

    /// This colour, or the nearest darker or lighter one that can be read on each of `backgrounds`. Those are all light or
    /// all dark. It keeps its hue; on the way to white it first becomes as bright as it can be, so that it doesn't turn grey.
    pub(crate) fn readable_on(self, backgrounds: &[Self]) -> Self {
        let is_light = backgrounds.iter().all(|background| Self::BLACK.contrast(*background) >= READABLE);
        let (way, end) = if is_light { (self, Self::BLACK) } else { (self.brightest(), Self::WHITE) };
        let is_readable = |color: &Self| backgrounds.iter().all(|background| color.contrast(*background) >= READABLE);
        let first = (0..=100).map(|percent| self.mixed(way, percent));
        first.chain((0..=100).map(|percent| way.mixed(end, percent))).find(is_readable).unwrap_or(end)
    }

    /// The same hue and saturation, with as much light as fits.
    fn brightest(self) -> Self {
        let most = self.0.into_iter().max().unwrap_or_default().max(1);
        let scale = |value: u8| u8::try_from(u16::from(value) * 255 / u16::from(most)).expect("at most 255");
        Self(self.0.map(scale))
    }

    /// The contrast ratio (WCAG 2.2), from 1 to 21.
    pub(crate) fn contrast(self, other: Self) -> f64 {
        let (a, b) = (self.luminance(), other.luminance());
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    /// Relative luminance (WCAG 2.2), from 0 to 1.
    fn luminance(self) -> f64 {
        let linear = |value: u8| {
            let value = f64::from(value) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        let [red, green, blue] = self.0.map(linear);
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    fn mixed(self, other: Self, percent: u16) -> Self {
        let mix = |from: u8, to: u8| {
            let sum = u16::from(from) * (100 - percent) + u16::from(to) * percent;
            u8::try_from(sum / 100).expect("at most 255")
        };
        let ([r, g, b], [red, green, blue]) = (self.0, other.0);
        Self([mix(r, red), mix(g, green), mix(b, blue)])
    }
}

impl FromStr for Color {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix('#').ok_or("does not begin with #")?;
        let mut parts = [0; 3];
        hex::decode_to_slice(digits, &mut parts).map_err(|_| "not six hexadecimal digits after the #")?;
        Ok(Self(parts))
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contrast_is_that_of_wcag() {
        let color = |text: &str| text.parse::<Color>().expect("a colour");
        assert!((Color::BLACK.contrast(Color::WHITE) - 21.0).abs() < 0.001);
        // The lightest grey that can be read on white, and the next one (WebAIM's contrast checker).
        assert!(color("#767676").contrast(Color::WHITE) >= READABLE);
        assert!(color("#777777").contrast(Color::WHITE) < READABLE);
    }

    #[test]
    fn every_color_becomes_readable_and_a_readable_one_stays() {
        let (light, dark) = ([Color([0xf6, 0xf8, 0xfa]), Color::WHITE], [Color([0x0d, 0x11, 0x17]), Color::BLACK]);
        let steps = || (0..=255).step_by(17);
        for color in steps().flat_map(|r| steps().flat_map(move |g| steps().map(move |b| Color([r, g, b])))) {
            for backgrounds in [light, dark] {
                let readable = color.readable_on(&backgrounds);
                assert!(backgrounds.iter().all(|on| readable.contrast(*on) >= READABLE), "{color} on {backgrounds:?}");
                let was_readable = backgrounds.iter().all(|on| color.contrast(*on) >= READABLE);
                assert_eq!(was_readable, readable == color, "{color}");
            }
        }
    }
}
