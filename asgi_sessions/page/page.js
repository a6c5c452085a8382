// Writes times in the reader's time zone, and countries by their names. The page works without it.
(() => {
  const lang = document.documentElement.lang
  const locales = [...navigator.languages.filter(each => each.split('-')[0] === lang.split('-')[0]), lang]
  const moment = new Intl.DateTimeFormat(locales, {dateStyle: 'medium', timeStyle: 'short'})
  const exact = new Intl.DateTimeFormat(locales, {dateStyle: 'full', timeStyle: 'long'})
  const countries = new Intl.DisplayNames(locales, {type: 'region'})
  for (const time of document.querySelectorAll('main time')) {
    const at = new Date(time.dateTime)
    time.title = exact.format(at)
    if (!('ago' in time.dataset)) time.textContent = moment.format(at)
  }
  for (const place of document.querySelectorAll('[data-country]')) {
    const code = place.dataset.country, said = place.textContent
    if (said.endsWith(code)) place.textContent = said.slice(0, -code.length) + countries.of(code)
  }
  const sure = document.querySelector('.sure')
  if (!sure) return
  document.addEventListener('click', event => { if (!sure.contains(event.target)) sure.open = false })
  sure.addEventListener('keydown', event => {
    if (event.key === 'Escape') { sure.open = false; sure.firstElementChild.focus() }
  })
})()
