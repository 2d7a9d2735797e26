// Verifies deliveries as their receivers do: with `standardwebhooks` and with `svix`.
// stdin: {"secret": "whsec_…", "requests": [{"headers": {…}, "body": "…"}]}; stdout: one line of JSON per request.
import { readFileSync } from 'node:fs'
import { Webhook as Standard } from 'standardwebhooks'
import { Webhook as Svix } from 'svix'

const { secret, requests } = JSON.parse(readFileSync(0, 'utf8'))
for (const { headers, body } of requests) {
  const seen = {}
  for (const [name, Verifier] of [['standardwebhooks', Standard], ['svix', Svix]]) {
    try {
      new Verifier(secret).verify(body, headers)
      seen[name] = 'valid'
    } catch (error) {
      seen[name] = error.message
    }
  }
  console.log(JSON.stringify(seen))
}
