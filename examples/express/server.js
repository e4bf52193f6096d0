// A notebook that is read in the nearest region and written in the primary one.
import express from 'express'
import { getAllInstances } from 'litefs-js'
import {
	getEnsurePrimaryMiddleware,
	getSetTxNumberMiddleware,
	getTransactionalConsistencyMiddleware,
} from 'litefs-js/express'
import * as litefs from './litefs.js'

await litefs.mount()

const app = express()
app.disable('x-powered-by')
app.get('/healthz', (_req, res) => res.type('text').send('ok\n'))

// On a replica: 409 with `fly-replay: instance=<the primary>`, which the proxy follows.
app.use(getEnsurePrimaryMiddleware())
// A client that has written waits until this replica has what it wrote.
app.use(getTransactionalConsistencyMiddleware())
app.use(express.json({ limit: '512kb' }))

const here = req => ({
	machine: process.env.FLY_MACHINE_ID,
	region: process.env.FLY_REGION,
	primary: litefs.isPrimary,
	method: req.method,
	headers: req.headers,
})

app.get('/', (req, res) => res.json({ ...here(req), notes: litefs.read() }))

app.post(
	'/notes',
	(req, res, next) => {
		if (typeof req.body?.text !== 'string') {
			return res.status(400).json({ error: 'send {"text": "…"} as application/json' })
		}
		litefs.write([...litefs.read(), { text: req.body.text, by: req.get('fly-replay-src') ?? 'the primary' }])
		next()
	},
	getSetTxNumberMiddleware(),
	(req, res) => res.json({ ...here(req), body: req.body }),
)

app.get('/instances', async (_req, res) => res.json(await getAllInstances()))

// Skein's portable mode says in PORT where to listen; on Fly.io and in netns mode it is the
// internal_port of fly.toml.
const port = Number(process.env.PORT ?? 3000)
const server = app.listen(port, process.env.PORT ? '127.0.0.1' : '::', error => {
	if (error) throw error
	console.log(`listening on ${port}, ${litefs.isPrimary ? 'primary' : 'replica'}`)
})
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => server.close(() => process.exit(0)))
