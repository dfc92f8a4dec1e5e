/* A stand-in for Pyxis: a SPANK plugin with its options. It starts no container; it checks what Pyxis checks, goes to
 * the working directory, and tells each task in PYXIS_STANDIN what it was given. */
#include <slurm/spank.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

SPANK_PLUGIN(pyxis, 1)

static char given[16384];
static char workdir[4096];
static int broken;

static int note(const char *name, const char *value)
{
	if (strlen(given) + strlen(name) + strlen(value ? value : "") + 3 >= sizeof(given))
		return ESPANK_ERROR;
	strcat(given, name);
	strcat(given, "=");
	strcat(given, value ? value : "");
	strcat(given, "\n");
	return ESPANK_SUCCESS;
}

static int image(int val, const char *arg, int remote) { return note("image", arg); }
static int env(int val, const char *arg, int remote) { return note("env", arg); }
static int home(int val, const char *arg, int remote) { return note("home", val ? "yes" : "no"); }
static int writable(int val, const char *arg, int remote) { return note("writable", val ? "yes" : "no"); }

static int change_to(int val, const char *arg, int remote)
{
	strncpy(workdir, arg, sizeof(workdir) - 1);
	return note("workdir", arg);
}

/* A mount becomes a line of an fstab: a space in a path would end it, \040 is one. Version 0.24 writes that itself. */
static int unescape(char *path)
{
#ifdef VERSION_24
	return strpbrk(path, "\"$`\\") ? ESPANK_BAD_ARG : ESPANK_SUCCESS;
#endif
	char *to = path;
	for (char *from = path; *from; to++) {
		if (strchr(" \t\"$`", *from))
			return ESPANK_BAD_ARG;
		if (!strncmp(from, "\\040", 4)) {
			*to = ' ';
			from += 4;
		} else
			*to = *from++;
	}
	*to = 0;
	return ESPANK_SUCCESS;
}

static int mounts(int val, const char *arg, int remote)
{
	char *copy = strdup(arg), *rest = copy, *one;
	while ((one = strsep(&rest, ","))) {
		char *colon = strchr(one, ':');
		if (!colon || one[0] != '/')
			return ESPANK_BAD_ARG;
		*colon = 0;
		if (unescape(one) || unescape(colon + 1))
			return ESPANK_BAD_ARG;
		if (remote && access(one, F_OK)) {
			slurm_error("pyxis: couldn't start container: %s: no such file or directory", one);
			broken = 1;
		}
	}
	free(copy);
	return note("mounts", arg);
}

static int unshare_namespaces(int val, const char *arg, int remote) { return note("unshare", arg); }

static struct spank_option options[] = {
#ifdef VERSION_24
	{ "container-unshare", "NS[,NS...]", "[pyxis] namespaces", 1, 1, unshare_namespaces },
#endif
	{ "container-image", "IMAGE", "[pyxis] image", 1, 0, image },
	{ "container-mounts", "SRC:DST[:FLAGS],...", "[pyxis] mounts", 1, 0, mounts },
	{ "container-workdir", "PATH", "[pyxis] working directory", 1, 0, change_to },
	{ "container-env", "NAME,...", "[pyxis] names", 1, 0, env },
	{ "container-mount-home", NULL, "[pyxis] home", 0, 1, home },
	{ "no-container-mount-home", NULL, "[pyxis] no home", 0, 0, home },
	{ "container-writable", NULL, "[pyxis] writable", 0, 1, writable },
	{ "container-readonly", NULL, "[pyxis] read-only", 0, 0, writable },
	SPANK_OPTIONS_TABLE_END
};

int slurm_spank_init(spank_t sp, int ac, char **av)
{
	for (int i = 0; options[i].name; i++)
		if (spank_option_register(sp, &options[i]) != ESPANK_SUCCESS)
			return ESPANK_ERROR;
	return ESPANK_SUCCESS;
}

int slurm_spank_task_init(spank_t sp, int ac, char **av)
{
	if (broken)
		_exit(1);
	if (!given[0])
		return ESPANK_SUCCESS;
	spank_setenv(sp, "PYXIS_STANDIN", given, 1);
	return workdir[0] && chdir(workdir) ? ESPANK_ERROR : ESPANK_SUCCESS;
}
