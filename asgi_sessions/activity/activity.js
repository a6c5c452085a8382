// Warns before the session ends, in all tabs. <script src="…/activity.js" defer data-warn="120" data-expired="/login">
(() => {
  const me = document.currentScript, {warn = 120, expired, title, text, stay} = me.dataset
  const url = new URL('.', me.src).href, tabs = new BroadcastChannel(url)
  let end, known, timer, box, time, back
  const left = () => Math.max(0, Math.round((end - Date.now()) / 1000))
  const later = (what, seconds) => { clearTimeout(timer); timer = setTimeout(what, Math.min(seconds, 9e5) * 1000) }
  const close = () => { if (box?.open) { box.close(); back?.focus() } }
  const hear = said => {
    if (!said.logged_in) return known && leave()
    known = 1
    end = Date.now() + Math.min(said.idle_in, said.absolute_in) * 1000
    if (left() > warn) { close(); later(look, left() - warn) } else show()
  }
  const ask = async method => {
    try {
      const said = await (await fetch(url, {method, cache: 'no-store'})).json()
      if (method) tabs.postMessage(said)
      hear(said)
    } catch { later(look, 30) }
  }
  const look = () => ask()
  const leave = () => {
    known = 0
    close()
    if (document.dispatchEvent(new Event('session-expired', {cancelable: true})))
      expired ? location.assign(expired) : location.reload()
  }
  const add = (name, content) => {
    const made = document.createElement(name)
    made.append(content)
    box.append(made)
    return made
  }
  const show = () => {
    if (!box) {
      box = document.createElement('dialog')
      box.className = 'session-timeout'
      box.ariaLabel = title || 'Are you still there?'
      add('h2', box.ariaLabel)
      add('p', text || 'You will be logged out in ').append(time = document.createElement('time'))
      add('button', stay || 'Stay logged in').onclick = box.oncancel = event => { event.preventDefault(); ask('POST') }
      document.body.append(box)
    }
    if (!box.open) { back = document.activeElement; box.showModal() }
    const seconds = left()
    time.textContent = (seconds / 60 | 0) + ':' + `${seconds % 60}`.padStart(2, 0)
    seconds ? later(show, .5) : later(look, 1)
  }
  tabs.onmessage = event => hear(event.data)
  document.onvisibilitychange = () => document.hidden || look()
  look()
})()
