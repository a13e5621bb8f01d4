// Small pictures, a few at a time: a browser opens six connections to a server, and decisions must not wait for pictures.

const AT_ONCE = 4;

export class Thumbs {
  constructor(atOnce = AT_ONCE) {
    this.atOnce = atOnce;
    this.waiting = new Map(); // image -> address, in the order asked
    this.loading = new Set();
  }

  /** Load an address into an image soon; what it showed or waited for before is given up. */
  want(image, address) {
    this.drop(image);
    image.hidden = true; // until it is whole
    this.waiting.set(image, address);
    this.next();
  }

  drop(image) {
    this.waiting.delete(image);
    if (this.loading.delete(image)) image.onload = image.onerror = null;
    image.removeAttribute("src");
    this.next();
  }

  next() {
    for (const [image, address] of this.waiting) {
      if (this.loading.size >= this.atOnce) return;
      this.waiting.delete(image);
      this.loading.add(image);
      image.onload = () => this.done(image, true);
      image.onerror = () => this.done(image, false);
      image.decoding = "async";
      image.src = address;
    }
  }

  done(image, whole) {
    image.onload = image.onerror = null;
    image.hidden = !whole;
    this.loading.delete(image);
    this.next();
  }
}
