// What LiteFS does for a real app, as small as it can be: one writer, a `.primary` file on every
// other machine, a position that grows with each write. Real LiteFS replicates over the network;
// this one needs a directory that all machines see, as those of a testbed on one computer do.
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

const { FLY_APP_NAME: app = 'notebook', FLY_MACHINE_ID: machine, FLY_REGION, PRIMARY_REGION } = process.env
const shared = path.join(process.env.LITEFS_DIR, app)
const own = path.join(shared, machine ?? 'local')
const database = process.env.DATABASE_FILENAME

export const isPrimary = FLY_REGION === undefined || FLY_REGION === PRIMARY_REGION

export async function mount() {
	fs.mkdirSync(own, { recursive: true })
	// litefs-js reads the environment at each call.
	process.env.LITEFS_DIR = own
	link(`${database}-pos`)
	if (isPrimary) {
		fs.rmSync(path.join(own, '.primary'), { force: true })
		if (!fs.existsSync(path.join(shared, database))) write([])
		replace('primary', machine ?? 'local')
		return
	}
	link('.primary', 'primary')
	// A replica without a primary would take itself for one.
	while (!fs.existsSync(path.join(own, '.primary'))) await delay(50)
}

export function read() {
	return JSON.parse(fs.readFileSync(path.join(shared, database), 'utf8'))
}

export function write(notes) {
	replace(database, JSON.stringify(notes))
	replace(`${database}-pos`, `${(position() + 1).toString(16).padStart(16, '0')}/0000000000000000\n`)
}

function position() {
	try {
		return parseInt(fs.readFileSync(path.join(shared, `${database}-pos`), 'utf8'), 16)
	} catch {
		return 0
	}
}

// Readers see the old text or the new one, never half of it.
function replace(name, text) {
	const draft = path.join(own, `${name}.draft`)
	fs.writeFileSync(draft, text)
	fs.renameSync(draft, path.join(shared, name))
}

function link(name, target = name) {
	const file = path.join(own, name)
	fs.rmSync(file, { force: true })
	fs.symlinkSync(path.join(shared, target), file)
}
