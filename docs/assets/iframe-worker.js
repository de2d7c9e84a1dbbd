// A page that is opened as a file may not start a worker, in which the search runs. This stand-in runs the worker's script in
// a hidden frame instead. Over HTTP nothing is changed.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const place = new URL(address, document.baseURI)
      const frame = document.createElement("iframe")
      frame.hidden = true
      const waiting = []
      this.deliver = (data) => waiting.push(data)
      frame.addEventListener("load", () => this.start(frame.contentWindow, place, waiting), { once: true })
      const append = () => document.body.appendChild(frame)
      document.body ? append() : addEventListener("DOMContentLoaded", append)
    }

    start(inside, place, waiting) {
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      const load = (address) => new Promise((done, failed) => {
        const script = inside.document.createElement("script")
        script.src = new URL(address, place)
        script.onload = done
        script.onerror = failed
        inside.document.body.appendChild(script)
      })
      inside.importScripts = (...addresses) =>
        addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve())
      load(place).then(() => {
        this.deliver = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }))
        waiting.splice(0).forEach(this.deliver)
      })
    }

    postMessage(data) {
      this.deliver(data)
    }

    terminate() {}
  }
}
